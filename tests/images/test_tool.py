"""The classifier's own image: no engine inside, and a classifier that it serves."""

from __future__ import annotations

from pathlib import Path

import docker
import pytest

from tests.client import Options, TurnRecord, connect
from tests.harness.models.classifiers import checkpoint
from tests.images import bake
from tests.images.containers import KEY, SECURE, address, mounted, outcome, running, wait_healthy
from yap_client import Ack, Done, ToolCall


@pytest.fixture(scope="module")
def image(runtime: str) -> str:
    """The runtime-tool image."""
    bake.build("runtime-tool")
    return bake.name("runtime-tool")


@pytest.fixture(scope="module")
def classifier(engine: docker.DockerClient, pipeline: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that holds a classifier alone, whose decisions are random."""
    model, out = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("out")
    checkpoint("bert", model)
    for path in (model, *model.iterdir()):
        path.chmod(0o755)
    out.chmod(0o777)
    volumes = {str(model): {"bind": "/model", "mode": "ro"}, str(out): {"bind": "/artifacts"}}
    asked = ("--min-tool-accuracy", "0", "--positive-label", "1")
    words = ("run", "--tool-only", *asked, "/model", "--out", "/artifacts/tool")
    with running(engine, pipeline, *words, volumes=volumes, network_mode="none", shm_size="1g") as container:
        status, output = outcome(container, 300)
    assert status == 0, output
    return out / "tool"


def test_it_holds_no_engine(engine: docker.DockerClient, image: str) -> None:
    script = "import importlib.util as u; print([n for n in ('vllm', 'triton', 'numba', 'llvmlite') if u.find_spec(n)])"
    with running(engine, image, "-c", script, entrypoint="python") as container:
        assert outcome(container) == (0, "[]\n")


async def test_it_decides_and_says_nothing(
    engine: docker.DockerClient, image: str, classifier: Path, network: str
) -> None:
    # Docker's own 64 MiB of shared memory are enough here.
    options = {**SECURE, "shm_size": "64m", "network": network, "volumes": mounted(classifier), "environment": KEY}
    with running(engine, image, **options) as container:
        wait_healthy(container)
        async with connect(Options(url=f"ws://{address(container)}:8000/ws", api_key="test-key")) as talk:
            turn = await TurnRecord(talk.say("Can you look at my screen?", gender="woman")).whole()
    assert [type(frame) for frame in turn.events] == [Ack, ToolCall, Done]


def test_a_model_that_the_containers_user_may_not_read_is_named(
    engine: docker.DockerClient, pipeline: str, tmp_path: Path
) -> None:
    checkpoint("bert", tmp_path)
    tmp_path.chmod(0o755)
    (tmp_path / "model.safetensors").chmod(0o600)
    volumes = {str(tmp_path): {"bind": "/model", "mode": "ro"}}
    words = ("plan", "--tool-only", "/model")
    with running(engine, pipeline, *words, volumes=volumes, network_mode="none", user="2000:2000") as container:
        status, output = outcome(container)
    assert status == 64, output
    assert "/model/model.safetensors" in output
    assert "docker run --user" in " ".join(output.split())
