"""What the image tests share: a Docker Engine, the images built once, and an artifact made in a container."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.images import bake, stand_in
from tests.images.containers import outcome, running

HERE = Path(__file__).parent
# For the stand-in base and the registry: the packages debootstrap, docker-registry, dpkg-dev and gcc.
TOOLS = ("debootstrap", "docker-registry", "dpkg-scanpackages", "gcc")
NOT_RUN = "image tests did NOT run: "


def missing() -> str | None:
    """What these tests need and this machine lacks."""
    for needed, command in (("a Docker Engine that answers", "version"), ("docker buildx", "buildx version")):
        try:
            done = subprocess.run(["docker", *command.split()], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return "expected the docker command, found none; install Docker Engine"
        if done.returncode:
            found = done.stderr.strip().splitlines()[-1:] or ["nothing"]
            return f"expected {needed}, found: {found[0]}; start one, or set DOCKER_HOST"
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"expected {', '.join(TOOLS)}, found no {' and no '.join(lacking)}; install them"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them where no engine answers."""
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    if not ours:
        return
    reason = missing()
    for item in ours:
        item.add_marker(pytest.mark.docker)
        # Building from nothing takes minutes, in whichever test comes first.
        item.add_marker(pytest.mark.timeout(2400))
        if reason:
            item.add_marker(pytest.mark.skip(reason=NOT_RUN + reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what did not run, in whichever worker."""
    reasons = [str(report.longrepr[2]) for report in terminalreporter.getreports("skipped")]
    told = [reason.partition(NOT_RUN)[2] for reason in reasons if NOT_RUN in reason]
    if told:
        terminalreporter.section("IMAGES NOT TESTED", sep="!", yellow=True, bold=True)
        terminalreporter.line(f"{len(told)} {NOT_RUN}{told[0]}", yellow=True)


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """The Docker Engine."""
    with contextlib.closing(docker.from_env()) as client:
        yield client


@pytest.fixture(scope="session")
def bases(engine: docker.DockerClient) -> None:
    """The stand-in bases."""
    stand_in.make()


@pytest.fixture(scope="session")
def runtime(bases: None) -> str:
    """The runtime-cpu image."""
    bake.build("runtime-cpu", "pipeline-cpu")
    return bake.name("runtime-cpu")


@pytest.fixture(scope="session")
def pipeline(runtime: str) -> str:
    """The pipeline-cpu image, built together with the runtime."""
    return bake.name("pipeline-cpu")


@pytest.fixture(scope="session")
def finished_stages(engine: docker.DockerClient) -> Iterator[str]:
    """A volume for the pipeline's cache."""
    volume = engine.volumes.create()
    yield volume.name
    volume.remove(force=True)


@pytest.fixture
def cache(engine: docker.DockerClient) -> Iterator[str]:
    """A volume for what a server fetches."""
    volume = engine.volumes.create()
    yield volume.name
    volume.remove(force=True)


@pytest.fixture
def network(engine: docker.DockerClient) -> Iterator[str]:
    """A network without a way out: this machine reaches the container, the container reaches nothing."""
    # A name of its own: a run that was killed leaves its network behind.
    network = engine.networks.create(f"{bake.NAMES}-{secrets.token_hex(4)}", internal=True)
    yield network.name
    network.remove()


@pytest.fixture(scope="session")
def artifact(
    engine: docker.DockerClient, pipeline: str, finished_stages: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An artifact of the embedded chat model, made in the pipeline's container without network.

    The first container is killed after its first stage; the second goes on from there.
    """
    out = tmp_path_factory.mktemp("out")
    out.chmod(0o777)
    options = {
        "network_mode": "none",
        "shm_size": "1g",
        "volumes": {finished_stages: {"bind": "/cache"}, str(out): {"bind": "/artifacts"}},
        "environment": {
            "AWQ_NSAMPLES": "16",
            "AWQ_SEQLEN": "256",
            "CHAT_MAX_LEN": "2048",  # what a longer prompt takes is measured elsewhere
            "VLLM_CPU_KVCACHE_SPACE": "1",
        },
    }
    words = ("run", "8bit", "embedded", "--out", "/artifacts/embedded")
    with running(engine, pipeline, *words, **options) as container:
        while b"source: done" not in container.logs():
            container.reload()
            assert container.status == "running", container.logs().decode()
            time.sleep(0.2)
        container.kill()
        first = container.logs().decode()
    with running(engine, pipeline, *words, **options) as container:
        status, output = outcome(container, 2000)  # three minutes on a machine with nothing else
    assert status == 0, f"{first}\n--- killed ---\n{output}"
    assert "dequantizing" in first
    assert "dequantizing" not in output
    return out / "embedded"
