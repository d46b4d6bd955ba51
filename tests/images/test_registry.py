"""Through a real registry: push, forget, pull, and run by digest."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.harness.server import free_port
from tests.images.containers import outcome, running

CONFIGURATION = """
version: 0.1
storage:
  filesystem:
    rootdirectory: {folder}
http:
  addr: 127.0.0.1:{port}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Debian's registry on loopback, which the engine trusts without TLS."""
    port = free_port()
    configuration = tmp_path / "registry.yml"
    configuration.write_text(CONFIGURATION.format(folder=tmp_path / "registry", port=port))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", configuration], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not answers(f"http://127.0.0.1:{port}/v2/"):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    """Whether the registry is up."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def test_an_image_is_pulled_and_run_by_digest(engine: docker.DockerClient, runtime: str, registry: str) -> None:
    name = f"{registry}/yap/runtime-cpu"
    engine.images.get(runtime).tag(name, "test")
    pushed = engine.images.push(name, "test", stream=True, decode=True)
    digest = next(line["aux"]["Digest"] for line in pushed if "aux" in line)
    engine.images.remove(f"{name}:test")
    pulled = engine.images.pull(name, digest)
    try:
        assert f"{name}@{digest}" in pulled.attrs["RepoDigests"]
        with running(engine, f"{name}@{digest}", "settings", network_mode="none") as container:
            status, output = outcome(container)
        assert status == 0
        assert "TEXT_API_KEY" in output
    finally:
        engine.images.remove(f"{name}@{digest}")
