"""What a model card tells people to type: every flag, image and variable is one that exists.

`tests/images/test_card.py` runs the command where there is a Docker Engine.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.publish.model_card import card
from runtime import artifact, defaults
from runtime.artifact import BuildMetadata
from runtime.artifact.hub import TOKEN_VARIABLES
from runtime.artifact.lanes import SERVED_LANES, lane_problem
from runtime.deployment.settings import RuntimeSettings
from tests.harness.card_commands import DockerRun, docker_runs
from tests.hub.artifacts import A100, engine_artifact

ROOT = Path(__file__).resolve().parents[4]
BAKE = (ROOT / "bake.hcl").read_text("utf-8")
REPO = "acme/llama-8b-int8"
GOLDEN = ROOT / "tests/data/artifacts"
KNOWN_OPTIONS = {"--rm", "--gpus", "--shm-size", "-p", "-v", "-e"}


def parallel(metadata: BuildMetadata) -> BuildMetadata:
    assert metadata.chat is not None
    limits = metadata.chat.limits.model_copy(update={"tensor_parallel_size": 2})
    return metadata.model_copy(update={"chat": metadata.chat.model_copy(update={"limits": limits})})


@pytest.fixture(scope="module", params=["cpu-int8", "vllm-fp8", "tool-only", "trt", "two GPUs"])
def metadata(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuildMetadata:
    if request.param == "trt":
        return artifact.read(engine_artifact(tmp_path_factory.mktemp("trt") / "a", A100))
    if request.param == "two GPUs":
        return parallel(artifact.read(GOLDEN / "vllm-fp8"))
    return artifact.read(GOLDEN / str(request.param))


@pytest.fixture
def command(metadata: BuildMetadata) -> DockerRun:
    (found,) = docker_runs(card(metadata, REPO))
    return found


@pytest.fixture(scope="module")
def preflight() -> ModuleType:
    spec = importlib.util.spec_from_file_location("preflight", ROOT / "images/preflight.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def default(variable: str) -> str:
    block = re.search(rf'^variable "{variable}" {{\n(.*?)^}}', BAKE, re.MULTILINE | re.DOTALL)
    assert block is not None
    found = re.search(r'^  default\s*= "(.*)"$', block[1], re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_image_is_one_that_bake_makes_under_that_name(metadata: BuildMetadata, command: DockerRun) -> None:
    lanes = re.search(r'^target "runtime" \{.*?lane = \[(.*?)\]', BAKE, re.MULTILINE | re.DOTALL)
    assert lanes is not None
    assert default("REGISTRY") == ""
    prefix = re.search(r'REGISTRY == "" \? "(\w+)" : REGISTRY', BAKE)
    assert prefix is not None
    made = {f"{prefix[1]}/runtime-{lane}:{default('TAG')}" for lane in re.findall(r'"(\w+)"', lanes[1])}
    assert command.image in made
    assert command.words == ()
    lane = re.sub(r".*runtime-|:.*", "", command.image)
    assert lane_problem(metadata, lane) is None
    assert f"docker buildx bake -f bake.hcl runtime-{lane}" in card(metadata, REPO)


def test_every_option_and_variable_is_known(command: DockerRun) -> None:
    assert command.options.keys() <= KNOWN_OPTIONS
    known = {name.upper() for name in RuntimeSettings.model_fields} | set(TOKEN_VARIABLES)
    assert {value.partition("=")[0] for value in command.options["-e"]} <= known
    given = dict(value.partition("=")[::2] for value in command.options["-e"])
    assert given["ARTIFACT"] == f"hf:{REPO}@main"
    # A secret in a command is one in the list of processes and in the shell's history.
    assert given["TEXT_API_KEY"] == ""
    assert given["HF_TOKEN"] == ""
    assert "export TEXT_API_KEY=" in command.script


def test_port_and_volume_are_those_of_the_image(command: DockerRun) -> None:
    dockerfile = (ROOT / "images/runtime.Dockerfile").read_text()
    port = re.search(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)
    volume = re.search(r'^VOLUME \["(.*)"\]$', dockerfile, re.MULTILINE)
    assert port is not None
    assert volume is not None
    assert command.options["-p"] == [f"{defaults.PORT}:{port[1]}"]
    assert [value.partition(":")[2] for value in command.options["-v"]] == [volume[1]]


def test_it_asks_for_the_hardware_that_the_engine_needs(
    metadata: BuildMetadata, command: DockerRun, preflight: ModuleType
) -> None:
    engine = metadata.chat is not None
    on_gpu = SERVED_LANES[metadata.lane].on_gpu
    assert (command.options.get("--gpus") == ["all"]) == (engine and on_gpu)
    shares = metadata.chat is not None and metadata.chat.limits.tensor_parallel_size > 1
    assert ("--shm-size" in command.options) == (engine and (not on_gpu or shares))
    for size in command.options.get("--shm-size", []):
        assert size.endswith("g")
        assert int(size[:-1]) << 10 >= preflight.MINIMUM_SHM_MIB


@pytest.mark.parametrize("text", ["docker run x", "```\ndocker runs x\n```\n"])
def test_a_command_outside_of_a_block_is_none(text: str) -> None:
    assert docker_runs(text) == []
