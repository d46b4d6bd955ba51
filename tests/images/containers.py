"""Containers of the images: started with what they need, waited for, and gone afterwards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import docker
from docker.models.containers import Container

from tests.client import Options, TurnRecord, connect

SECURE = {
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "shm_size": "1g",
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}
KEY = {"TEXT_API_KEY": "test-key"}


def mounted(folder: Path) -> dict:
    """An artifact as the runtime wants it: read-only at /artifact."""
    return {str(folder): {"bind": "/artifact", "mode": "ro"}}


def wait_healthy(container: Container, timeout: float = 900) -> None:
    """Wait until Docker calls the container healthy."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        container.reload()
        assert container.status == "running", container.logs().decode()[-4000:]
        if container.attrs["State"]["Health"]["Status"] == "healthy":
            return
        time.sleep(0.5)
    raise AssertionError(f"not healthy within {timeout} s:\n{container.logs().decode()[-4000:]}")


def address(container: Container) -> str:
    """The container's address on its one network."""
    (network,) = container.attrs["NetworkSettings"]["Networks"].values()
    return str(network["IPAddress"])


@contextlib.contextmanager
def running(engine: docker.DockerClient, image: str, *command: str, **options: object) -> Iterator[Container]:
    """A container that is gone afterwards, with its anonymous volumes."""
    container = engine.containers.run(image, list(command), detach=True, **options)
    try:
        yield container
    finally:
        container.remove(force=True, v=True)


def outcome(container: Container, timeout: float = 120) -> tuple[int, str]:
    """Exit status and output of a container that ends by itself."""
    status = int(container.wait(timeout=timeout)["StatusCode"])
    return status, container.logs().decode()


async def speak(url: str, utterance: str) -> TurnRecord:
    """One turn from outside the container."""
    options = Options(url=url, api_key="test-key", sampling={"temperature": 0.0})
    async with connect(options, persona="You are kind.") as talk:
        return await TurnRecord(talk.say(utterance)).whole()
