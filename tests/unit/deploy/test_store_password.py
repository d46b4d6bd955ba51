"""The stores of `deploy/` ask for the password that the servers read out of the same file, whatever stands in it."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from runtime.deployment.session_store import StoreAddress, read_password
from runtime.turns.stores.interface import StoreError
from runtime.turns.stores.valkey_store import ValkeyStore
from tests.harness.server import free_port
from tests.harness.stores.session_store import MISSING, VALKEY

pytestmark = pytest.mark.skipif(VALKEY is None, reason=MISSING)
DEPLOY = Path(__file__).parents[3] / "deploy"


def script(where: str, password: Path, folder: Path, port: int) -> str:
    """The command that starts a store, with its paths and its port exchanged."""
    if where == "compose":
        text = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["store"]["command"][-1]
        text = text.replace("$$", "$").replace("${STORE_MEMORY:-1gb}", "1gb")
        secret = "/run/secrets/store_password"
    else:
        manifests = yaml.safe_load_all((DEPLOY / "kubernetes/base/store.yaml").read_text("utf-8"))
        text = next(iter(manifests))["spec"]["template"]["spec"]["containers"][0]["command"][-1]
        secret = "/etc/yap/store/password"
    assert secret in text
    text = str(text).strip().replace("/tmp", shlex.quote(str(folder))).replace(secret, shlex.quote(str(password)))
    return f"{text} --port {port} --bind 127.0.0.1"


async def asked(port: int, password: str | None) -> str:
    """What a store says to a password: nothing where it takes it."""
    store = ValkeyStore(StoreAddress("127.0.0.1", port), password=password, ttl=60, timeout=5)
    try:
        await store.ping()
    except StoreError as error:
        return str(error)
    finally:
        await store.close()
    return ""


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
@pytest.mark.parametrize(
    "data", [b"0a1b\n", b"of\r\n", b"two words", b"a\"b\\\\c'd#e\n", "schl\u00fcssel $x %s ;&\n".encode()]
)
async def test_the_store_asks_for_what_the_servers_say(where: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(data)
    port = free_port()
    command = ["sh", "-c", script(where, tmp_path / "password", tmp_path, port)]
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
    try:
        while "Refused" in (told := await asked(port, read_password(data))):
            assert process.returncode is None, "it did not start"
            await asyncio.sleep(0.02)
        assert told == ""
        assert "WRONGPASS" in await asked(port, "other")
        assert "NOAUTH" in await asked(port, None)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n", None])
def test_a_store_without_a_password_does_not_start(where: str, data: bytes | None, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / "password").write_bytes(data)
    command = ["sh", "-c", script(where, tmp_path / "password", tmp_path, free_port())]
    assert subprocess.run(command, capture_output=True, timeout=30).returncode
