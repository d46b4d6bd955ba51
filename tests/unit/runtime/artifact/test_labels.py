"""Engine labels: what they say, and which engine a machine takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.artifact import ArtifactError
from runtime.artifact.labels import EngineLabel, pick
from runtime.host.machine import Gpu, Machine

H200 = Machine(
    gpus=(Gpu("NVIDIA H200", 90, 141 << 30, 140 << 30),),
    driver="580.65.06",
    driver_cuda="13.0",
    torch_cuda="13.0",
    packages={"tensorrt-llm": "1.2.1"},
)
HELD = ["sm80_trt-llm-1.2.1_cuda13.0", "sm90_trt-llm-1.2.1_cuda13.0", "sm90_trt-llm-1.2.0_cuda13.0"]

labels = st.builds(
    EngineLabel,
    st.integers(80, 130),
    st.from_regex(r"[0-9]\.[0-9]{1,2}(\.[0-9]|rc[0-9])?", fullmatch=True),
    st.from_regex(r"1[23]\.[0-9]", fullmatch=True),
    st.integers(1, 128),
)


@given(labels)
def test_a_label_that_was_written_is_read_as_the_same(label: EngineLabel) -> None:
    assert EngineLabel.parse(str(label)) == label


@pytest.mark.parametrize(
    "text",
    ["", "sm90", "sm9_trt-llm-1.2.1_cuda13.0", "sm90_trt-llm-1.2.1", "sm90_trt-llm-1.2.1_cuda13.0/..", "SM90"]
    + [f"{HELD[1]}_tp{size}" for size in ("", "0", "1", "02", "-2", "2.0", "2_tp2")],
)
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as sm90_trt-llm-1\.2\.1_cuda13\.0, found"):
        EngineLabel.parse(text)


def test_the_machines_own_label_is_picked_among_several() -> None:
    assert pick(HELD, H200) == "sm90_trt-llm-1.2.1_cuda13.0"


@given(st.lists(labels), st.randoms(use_true_random=False))
def test_whatever_is_picked_runs_here_and_the_order_does_not_matter(found: list[EngineLabel], random: object) -> None:
    names = sorted({str(label) for label in found} | {HELD[1]})
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    picked = pick(shuffled, H200)
    assert picked == pick(names, H200) == HELD[1]


@given(st.lists(labels), st.integers(1, 8), st.none() | st.integers(1, 8))
def test_what_is_picked_is_for_the_gpus_that_there_are_or_those_that_are_asked_for(
    found: list[EngineLabel], gpus: int, tensor: int | None
) -> None:
    """Every size that exists is found by who asks for it; who asks for none gets one that the machine can run."""
    machine = replace(H200, gpus=H200.gpus * gpus)
    mine = [EngineLabel(90, "1.2.1", "13.0", size) for size in (2, 4)]
    names = [str(label) for label in (*found, *mine)]
    fits = [label for label in (*found, *mine) if (label.sm, label.version, label.cuda[:2]) == (90, "1.2.1", "13")]
    fits = [label for label in fits if (label.tensor == tensor if tensor else label.tensor <= gpus)]
    if not fits:
        with pytest.raises(ArtifactError, match="expected an engine for"):
            pick(names, machine, tensor)
        return
    picked = EngineLabel.parse(pick(names, machine, tensor))
    assert picked in fits
    assert picked.tensor == min(label.tensor for label in fits)


def test_one_for_more_gpus_than_there_are_is_named_where_none_fits() -> None:
    with pytest.raises(ArtifactError, match=r"found sm90_trt-llm-1\.2\.1_cuda13\.0_tp2; build one"):
        pick([f"{HELD[1]}_tp2"], H200)
    with pytest.raises(ArtifactError, match=r"expected an engine for sm90_trt-llm-1\.2\.1_cuda13\.0_tp4, found"):
        pick([HELD[1], f"{HELD[1]}_tp2"], replace(H200, gpus=H200.gpus * 4), 4)


def test_another_cuda_of_the_same_major_version_will_do() -> None:
    assert pick(["sm90_trt-llm-1.2.1_cuda13.1", "sm90_trt-llm-1.2.1_cuda12.9"], H200) == "sm90_trt-llm-1.2.1_cuda13.1"


def test_names_that_are_no_labels_are_passed_over() -> None:
    assert pick(["README.md", HELD[1], "model"], H200) == HELD[1]


@pytest.mark.parametrize(
    ("held", "found"),
    [
        (HELD[:1] + HELD[2:], "sm80_trt-llm-1.2.1_cuda13.0, sm90_trt-llm-1.2.0_cuda13.0"),
        (["sm90_trt-llm-1.2.1_cuda12.9"], "sm90_trt-llm-1.2.1_cuda12.9"),
        ([], "none"),
    ],
)
def test_without_a_match_one_line_says_which_exist_and_how_to_build_one(held: list[str], found: str) -> None:
    with pytest.raises(ArtifactError) as refusal:
        pick(held, H200)
    line = str(refusal.value)
    assert line.startswith(f"expected an engine for sm90_trt-llm-1.2.1_cuda13.0, found {found}; build one")
    assert "yap-pipeline run --trt" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        (Machine(), "an NVIDIA GPU"),
        (replace(H200, packages={}), "expected tensorrt-llm, found none"),
        (replace(H200, torch_cuda=None, driver_cuda=None), "PyTorch for CUDA"),
    ],
)
def test_a_machine_that_cannot_run_engines_is_told_why(machine: Machine, line: str) -> None:
    with pytest.raises(ArtifactError, match=line):
        pick(HELD, machine)
