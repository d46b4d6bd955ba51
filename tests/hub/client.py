"""Points the real client of this process to a hub on loopback, makes keys to sign with, and kills clients midway."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import http_backoff

from runtime.artifact import hub as retries
from tests.hub.server import Hub


def configure_client(monkeypatch: pytest.MonkeyPatch, hub: Hub, token: str | None = None) -> None:
    """Set what `huggingface_hub` read from the environment when it was imported, and what it reads later.

    Waits between tries become short.
    """
    for name in ("HF_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_FILE", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hub.environment(token).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.01)
    monkeypatch.setitem(http_backoff.__kwdefaults__, "base_wait_time", 0.01)
    huggingface_hub.close_session()


def key_pair(folder: Path, name: str = "signing") -> tuple[Path, Path]:
    """Write a private and a public key on P-256."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub"
    secret.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return secret, public


def kill_midway(fetching: subprocess.Popen[bytes], partial: Path, *, arrived: int = 10 << 20) -> int:
    """Kill a process once so many bytes of a file have arrived; return how many there are then."""
    deadline = time.monotonic() + 60
    while not partial.exists() or partial.stat().st_size < arrived:
        assert fetching.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline, "nothing arrived"
        time.sleep(0.02)
    fetching.send_signal(signal.SIGKILL)
    fetching.wait()
    return partial.stat().st_size
