"""What bake.hcl describes, without building it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.images import bake

LANES = ("vllm", "trt", "cpu")
PINS = {"vllm": "vllm.txt", "cpu": "cpu.txt", "trt": "trt.unhashed"}


@pytest.fixture(scope="module")
def everything() -> dict:
    return bake.printed(
        "all", "base", "artifact-image", RELEASE="true", PIP_INDEX_URL="https://user:secret@index.invalid"
    )


def test_every_lane_has_a_pipeline_and_a_runtime(everything: dict) -> None:
    groups = everything["group"]
    assert set(groups["pipeline"]["targets"]) == {f"pipeline-{lane}" for lane in LANES}
    assert set(groups["runtime"]["targets"]) == {f"runtime-{lane}" for lane in (*LANES, "tool")}


def test_the_default_is_the_vllm_lane() -> None:
    assert bake.printed()["group"]["default"]["targets"] == ["pipeline-vllm", "runtime-vllm"]


def test_bases_are_pinned_by_tag_and_digest(everything: dict) -> None:
    for kind in ("devel", "runtime"):
        reference = everything["target"][f"base-{kind}"]["contexts"]["cuda"]
        assert re.fullmatch(r"docker-image://nvidia/cuda:13\.0\.\d-\w+-ubuntu22\.04@sha256:[0-9a-f]{64}", reference)


@pytest.mark.parametrize("lane", LANES)
def test_labels_name_the_engine_that_the_lock_pins(everything: dict, lane: str) -> None:
    package, version = everything["target"][f"runtime-{lane}"]["labels"]["yap.engine"].split()
    lock = (bake.ROOT / "images" / "locks" / PINS[lane]).read_text()
    assert f"\n{package}=={version}" in lock


def test_labels_say_what_is_inside(everything: dict) -> None:
    labels = everything["target"]["runtime-vllm"]["labels"]
    assert (labels["yap.lane"], labels["yap.cuda"], labels["yap.python"]) == ("vllm", "13.0", "3.10")
    assert labels["org.opencontainers.image.title"] == "runtime-vllm"
    assert labels["org.opencontainers.image.base.name"] == "nvidia/cuda:13.0.0-base-ubuntu22.04"
    assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")
    assert "-devel-" in everything["target"]["pipeline-vllm"]["labels"]["org.opencontainers.image.base.name"]


def test_tags_and_labels_of_a_release_go_over_ours(tmp_path: Path) -> None:
    """As docker/metadata-action gives them: a second file with a target of the same name."""
    given = {"tags": ["registry.invalid/acme/runtime-vllm:v1"], "labels": {"org.opencontainers.image.source": "here"}}
    (tmp_path / "metadata.json").write_text(json.dumps({"target": {"runtime-vllm": given}}))
    target = bake.printed("-f", str(tmp_path / "metadata.json"), "runtime-vllm")["target"]["runtime-vllm"]
    assert target["tags"] == given["tags"]
    assert target["labels"].items() >= {"org.opencontainers.image.source": "here", "yap.lane": "vllm"}.items()
    assert target["contexts"] == {"base": "target:base-runtime", "environment": "target:serving-vllm"}


def test_no_secret_is_a_build_argument(everything: dict) -> None:
    for target in everything["target"].values():
        assert "secret@" not in str(target.get("args", {}))
        assert "secret@" not in str(target.get("labels", {}))
    secrets = everything["target"]["serving-vllm"]["secret"]
    assert {"id": "pip_index_url", "env": "PIP_INDEX_URL"} in secrets


def test_no_two_images_share_a_name(everything: dict) -> None:
    tags = [tag for target in everything["target"].values() for tag in target.get("tags", ())]
    assert len(tags) == len(set(tags)) == 10


def test_releases_attest_contents_and_provenance(everything: dict) -> None:
    for target in ("runtime-vllm", "pipeline-trt"):
        kinds = {entry["type"] for entry in everything["target"][target]["attest"]}
        assert kinds == {"provenance", "sbom"}
    assert "attest" not in bake.printed("runtime-vllm")["target"]["runtime-vllm"]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TAG", "no spaces", "TAG: expected letters"),
        ("REGISTRY", "example/", "REGISTRY: expected no slash"),
        ("CUDA_VERSION", "12.9", "CUDA_VERSION: expected 13.x"),
        # Both bases are wrong then, and bake tells of one, in no order.
        ("CUDA_VERSION", "13.1", ": expected an image of CUDA_VERSION"),
        ("BASE_DEVEL", "nvidia/cuda:13.1.0-devel-ubuntu22.04", "BASE_DEVEL: expected an image of CUDA_VERSION"),
        ("BASE_RUNTIME", "acme/my-cuda:13.1", "BASE_RUNTIME: expected an image of CUDA_VERSION"),
        ("PYTHON_VERSION", "3.13", "PYTHON_VERSION: expected 3.10"),
        ("VERSION", "one", "VERSION: expected major.minor.patch"),
        ("REVISION", "main", "REVISION: expected a full commit id"),
        ("MPI_VERSION_PIN", "5.0.1", "MPI_VERSION_PIN: expected a version of Open MPI 4"),
        ("BASE_DEVEL", "nvidia/cuda", "BASE_DEVEL: expected NAME:TAG@sha256:DIGEST"),
        ("BASE_RUNTIME", "nvidia/cuda:13.0.0@sha256:12", "BASE_RUNTIME: expected NAME:TAG@sha256:DIGEST"),
        ("NETWORK", "none", "NETWORK: expected default or host"),
        ("ARTIFACT_LANE", "gpu", "ARTIFACT_LANE: expected vllm"),
    ],
)
def test_a_wrong_variable_is_refused(variable: str, value: str, message: str) -> None:
    done = bake.command("--print", "runtime-vllm", **{variable: value})
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("name", ["nvidia/cuda:13.1.2-{}-ubuntu22.04", "acme/cuda:13.1", "acme/base-{}:7"])
def test_another_cuda_comes_with_its_bases(name: str) -> None:
    bases = {f"BASE_{kind.upper()}": name.format(kind) for kind in ("devel", "runtime")}
    made = bake.printed("runtime-vllm", "base", CUDA_VERSION="13.1", **bases)["target"]
    assert made["runtime-vllm"]["labels"]["yap.cuda"] == "13.1"
    assert made["base-devel"]["contexts"]["cuda"] == f"docker-image://{bases['BASE_DEVEL']}"


def test_every_variable_is_described() -> None:
    blocks = re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', (bake.ROOT / "bake.hcl").read_text(), re.M | re.S)
    assert len(blocks) >= 18
    assert [name for name, body in blocks if "  description = " not in body] == []


def test_dockerfiles_pass_dockers_own_checks() -> None:
    done = bake.command("lint")
    assert done.returncode == 0, done.stdout + done.stderr
