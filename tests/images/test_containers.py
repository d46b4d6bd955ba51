"""The cpu images as containers: what they make, what they serve, what they refuse."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from runtime.artifact import hashes
from runtime.artifact import metadata as artifacts
from tests.client import Options, TurnRecord, connect
from tests.harness.server import free_port
from tests.hub import Hub, Repository
from tests.hub.artifacts import contents
from tests.hub.store import Stored, is_lfs
from tests.images import bake
from tests.images.containers import KEY, SECURE, address, mounted, outcome, running, speak, wait_healthy
from yap_client import Token


async def speak_while_stopping(url: str, container: Container) -> TurnRecord:
    """One turn, and `docker stop` at its first token. Short: a busy machine says it within the time to drain, too."""
    options = Options(url=url, api_key="test-key", sampling={"temperature": 0.0, "max_tokens": 24})
    stopping = None
    async with connect(options, persona="You tell long stories.") as talk:
        turn = TurnRecord(talk.say("Tell me a story about a lighthouse."))
        async for frame in turn:
            if stopping is None and isinstance(frame, Token):
                stopping = asyncio.create_task(asyncio.to_thread(container.stop, timeout=60))
    assert stopping is not None
    await stopping
    return turn


def test_a_container_without_settings_names_all_problems_and_exits_64(
    engine: docker.DockerClient, runtime: str
) -> None:
    with running(engine, runtime, environment={"PORT": "many", "CHAT_TOP_P": "7"}, **SECURE) as container:
        status, output = outcome(container)
    assert status == 64
    named = {line.split(": ")[1] for line in output.splitlines()}
    assert named == {"PORT", "CHAT_TOP_P", "TEXT_API_KEY"}


def test_a_wrong_environment_and_a_wrong_stack_are_told_at_once(engine: docker.DockerClient, runtime: str) -> None:
    with running(engine, runtime, environment={"PORT": "many"}, shm_size="64m") as container:
        status, output = outcome(container)
    assert status == 64
    named = [line.partition(": ")[2].partition(": ")[0] for line in output.splitlines()]
    assert named == ["/dev/shm", "PORT", "TEXT_API_KEY"]


def test_a_container_without_artifact_says_so_and_exits_65(engine: docker.DockerClient, runtime: str) -> None:
    with running(engine, runtime, environment=KEY, network_mode="none", **SECURE) as container:
        status, output = outcome(container)
    assert status == 65
    assert "/artifact: expected an artifact with build_metadata.json, found none" in output


def test_the_pipeline_plans_in_its_lane_without_being_told(engine: docker.DockerClient, pipeline: str) -> None:
    with running(engine, pipeline, "plan", "4bit", "embedded", "embedded", network_mode="none") as container:
        status, output = outcome(container)
    assert status == 0, output
    assert "cpu" in output


def test_an_artifact_made_by_a_killed_and_resumed_container_is_whole(artifact: Path) -> None:
    metadata = artifacts.read(artifact)
    hashes.verify_files(artifact, metadata)
    assert metadata.validation is not None
    assert metadata.validation.passed


async def test_the_runtime_serves_it_read_only_unprivileged_and_without_network(
    engine: docker.DockerClient, runtime: str, artifact: Path, network: str
) -> None:
    # An arbitrary user of group 0, as OpenShift assigns one.
    options = {**SECURE, "user": "123456:0", "network": network, "volumes": mounted(artifact), "environment": KEY}
    with running(engine, runtime, **options) as container:
        wait_healthy(container)
        turn = await speak(f"ws://{address(container)}:8000/ws", "What is the capital of France?")
        assert turn.ok
        assert "Paris" in turn.text
        reach = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
        assert container.exec_run(["python", "-c", reach]).exit_code != 0
        assert container.exec_run(["touch", "/opt/yap/app/x"]).exit_code != 0
        assert container.diff() is None
        interrupted = await speak_while_stopping(f"ws://{address(container)}:8000/ws", container)
        assert interrupted.ok, "a turn that ran when SIGTERM came was cut off"
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0, container.logs().decode()[-2000:]


def copy_of(folder: Path, to: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folder, to / "artifact"))


def refusal(engine: docker.DockerClient, image: str, folder: Path) -> str:
    """What the runtime says of an artifact that it refuses."""
    options = {**SECURE, "network_mode": "none", "volumes": mounted(folder), "environment": KEY}
    with running(engine, image, **options) as container:
        status, output = outcome(container)
    assert status == 65, output
    return output


def test_a_tampered_artifact_is_refused(
    engine: docker.DockerClient, runtime: str, artifact: Path, tmp_path: Path
) -> None:
    spoiled = copy_of(artifact, tmp_path)
    weights = next(spoiled.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert f"{weights.name}: expected SHA-256" in refusal(engine, runtime, spoiled)


def test_an_artifact_for_another_gpu_is_refused(
    engine: docker.DockerClient, runtime: str, artifact: Path, tmp_path: Path
) -> None:
    other = copy_of(artifact, tmp_path)
    metadata = artifacts.read(other)
    platform = metadata.platform.model_copy(update={"sm": 90, "gpu_name": "NVIDIA H200"})
    metadata.model_copy(update={"platform": platform}).write(other)
    assert "expected GPU architecture sm90 (NVIDIA H200), found no GPU" in refusal(engine, runtime, other)


async def test_an_image_with_the_artifact_baked_in_serves_it_without_mount_and_network(
    engine: docker.DockerClient, runtime: str, artifact: Path, network: str
) -> None:
    bake.build("artifact-image", ARTIFACT=str(artifact), ARTIFACT_LANE="cpu")
    with running(engine, bake.name("artifact"), **SECURE, network=network, environment=KEY) as container:
        wait_healthy(container)
        turn = await speak(f"ws://{address(container)}:8000/ws", "What is the capital of France?")
    assert "Paris" in turn.text


def published(folder: Path) -> Repository:
    """A repository of a hub that holds the artifact."""
    repository = Repository("acme/embedded")
    files = {name: Stored(content, is_lfs(name, len(content))) for name, content in contents(folder).items()}
    repository.commit("artifact", files)
    return repository


async def test_an_artifact_from_the_hub_stays_in_the_volume_and_is_served_again_without_it(
    engine: docker.DockerClient, runtime: str, artifact: Path, network: str, cache: str
) -> None:
    repository = published(artifact)
    environment = {**KEY, "ARTIFACT": f"hf:{repository.name}@{repository.head.oid}"}
    options = {**SECURE, "volumes": {cache: {"bind": "/cache"}}}
    with Hub() as hub:
        hub.repositories[repository.name] = repository
        reaching = {**environment, "HF_ENDPOINT": hub.url, "HOST": "127.0.0.1", "PORT": str(free_port())}
        with running(engine, runtime, **options, network_mode="host", environment=reaching) as container:
            wait_healthy(container)
        assert hub.requests("GET", "^/storage/")
    with running(engine, runtime, **options, network=network, environment=environment) as container:
        wait_healthy(container)
        turn = await speak(f"ws://{address(container)}:8000/ws", "What is the capital of France?")
    assert "Paris" in turn.text


def test_a_tampered_artifact_cannot_be_baked_in(runtime: str, artifact: Path, tmp_path: Path) -> None:
    spoiled = copy_of(artifact, tmp_path)
    (spoiled / "config.json").write_text("{}")
    with pytest.raises(AssertionError, match=re.escape("config.json: expected")):
        bake.build("artifact-image", ARTIFACT=str(spoiled), ARTIFACT_LANE="cpu")


def test_an_artifact_of_another_lane_cannot_be_baked_in(runtime: str, artifact: Path, tmp_path: Path) -> None:
    other = copy_of(artifact, tmp_path)
    metadata = artifacts.read(other)
    metadata.model_copy(update={"lane": "vllm"}).write(other)
    with pytest.raises(AssertionError, match="expected an artifact of the lane cpu, found one of the lane vllm"):
        bake.build("artifact-image", ARTIFACT=str(other), ARTIFACT_LANE="cpu")


# Names of files that have no business in a server: sources and products of compilers, compilers, tests, caches. torch's
# own Python files all stay, tests too, for they are part of its compile caches' keys.
UNWANTED = """
find / -xdev \\( -path /proc -o -path /sys -o -path '*/torch/fx/passes/tests' \\) -prune -o -type f \\( -name '*.a' \\
  -o -name '*.h' -o -name '*.hpp' -o -name '*.cuh' -o -name nvcc -o -name ptxas -o -name gcc -o -name g++ \\
  -o -name 'cc1*' -o -name uv -o -name pip -o -name 'calibration*' -o -path '/opt/*/tests/*' -o -path '*/pip/*' \\
  -o -path '*/llmcompressor/*' -o -path '*/modelopt/*' \\
  -o -path '/root/.cache/*' -o -path '/opt/yap/app/pipeline/*' -o -path '/var/lib/apt/lists/*' \\) -print
"""


def test_the_runtime_holds_nothing_that_could_build(engine: docker.DockerClient, runtime: str) -> None:
    with running(engine, runtime, "-c", UNWANTED, entrypoint="sh", user="0") as container:
        found = outcome(container)[1].splitlines()
    assert found == []


def test_images_can_be_read_without_pulling_them(engine: docker.DockerClient, runtime: str) -> None:
    config = engine.images.get(runtime).attrs["Config"]
    assert config["User"] == "2000:0"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"][0] == "tini"
    assert list(config["Volumes"]) == ["/cache"]
    assert config["Labels"]["yap.lane"] == "cpu"


def sizes(*options: str) -> subprocess.CompletedProcess[str]:
    """`make images-size` for the images of these tests."""
    command = [sys.executable, "images/sizes.py", "--registry", bake.NAMES, "--tag", bake.TAG, *options]
    return subprocess.run(command, cwd=bake.ROOT, capture_output=True, text=True, check=False)


def test_images_keep_within_their_budgets(runtime: str, pipeline: str) -> None:
    done = sizes()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^runtime-cpu: \d+ MiB of \d+$", done.stdout, re.MULTILINE)


def test_an_image_over_its_budget_is_named(runtime: str, tmp_path: Path) -> None:
    budget = tmp_path / "budget.txt"
    budget.write_text("runtime-cpu 100\n")
    done = sizes("--budget", str(budget))
    assert done.returncode == 1
    assert "runtime-cpu: expected at most 100 MiB, found" in done.stderr
