"""The model card's command, run as it is printed.

Stood in for: the image under the name that the card prints is the tests' own, told to take from its volume what the hub
would give, because a container cannot reach a hub on this machine's loopback under the public hub's name.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.request import urlopen

import docker
import pytest

from pipeline.publish.model_card import card
from runtime import artifact as artifacts
from tests.harness.card_commands import DockerRun, docker_runs
from tests.harness.server import free_port
from tests.hub import Hub, Repository
from tests.hub.artifacts import contents
from tests.hub.store import Stored, is_lfs
from tests.images.containers import KEY, SECURE, running, speak, wait_healthy

REPO = "acme/embedded"
STAND_IN = "FROM {image}\nENV HF_HUB_OFFLINE=1\nLABEL yap.test=card\n"


@pytest.fixture
def printed(artifact: Path) -> DockerRun:
    (command,) = docker_runs(card(artifacts.read(artifact), REPO))
    return command


@pytest.fixture
def prepared(engine: docker.DockerClient, runtime: str, artifact: Path, printed: DockerRun) -> Iterator[None]:
    """The image under the printed name, and the artifact in the printed volume, as an earlier start had left it."""
    name = printed.options["-v"][0].partition(":")[0]
    taken = [volume.name for volume in engine.volumes.list() if volume.name == name]
    taken += [tag for image in engine.images.list() for tag in image.tags if tag == printed.image]
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            taken.append("port 8000")
    if taken:
        pytest.skip(f"expected {', '.join(taken)} to be free, found it in use by somebody")
    volume = engine.volumes.create(name)
    try:
        repository = Repository(REPO)
        files = {path: Stored(content, is_lfs(path, len(content))) for path, content in contents(artifact).items()}
        repository.commit("artifact", files)
        with Hub() as hub:
            hub.repositories[REPO] = repository
            where = {"HOST": "127.0.0.1", "PORT": str(free_port()), "ARTIFACT": f"hf:{REPO}@main"}
            reaching = {**where, "HF_ENDPOINT": hub.url}
            options = {**SECURE, "network_mode": "host", "volumes": {name: {"bind": "/cache"}}}
            with running(engine, runtime, **options, environment={**KEY, **reaching}) as container:
                wait_healthy(container)
        subprocess.run(
            ["docker", "build", "-q", "-t", printed.image, "-"],
            input=STAND_IN.format(image=runtime), text=True, check=True, capture_output=True,
        )  # fmt: skip
        yield
        engine.images.remove(printed.image, force=True)
    finally:
        volume.remove(force=True)


@pytest.mark.usefixtures("prepared")
def test_what_the_card_prints_serves_the_artifact(printed: DockerRun) -> None:
    script = re.sub(r"\$\(openssl rand -hex 32\)", KEY["TEXT_API_KEY"], printed.script)
    assert script != printed.script
    with subprocess.Popen(["bash", "-euc", script], start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 300
            while not ready():
                assert process.poll() is None, "the command ended by itself"
                assert time.monotonic() < deadline, "not ready within 300 s"
                time.sleep(0.5)
            turn = asyncio.run(speak("ws://127.0.0.1:8000/ws", "What is the capital of France?"))
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)
    assert "Paris" in turn.text


def ready() -> bool:
    """Whether the server behind the printed port says that it is."""
    try:
        with urlopen("http://127.0.0.1:8000/readyz", timeout=5) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except OSError:
        return False
