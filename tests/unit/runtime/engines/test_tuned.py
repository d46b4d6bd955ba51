"""Tuned engine options: used where they were measured, never over the operator's, and nowhere else."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from runtime import engines
from runtime.artifact import (
    BuildMetadata,
    ChatModel,
    EngineChoices,
    TriedOptions,
    TunedFigures,
    TunedOptions,
    TuningKey,
)
from runtime.engines import EngineOptionError, EngineOptions
from runtime.engines.tuned import VARIABLES, key_of, told_here, tuned, with_choices
from runtime.engines.vllm import arguments
from runtime.host import machine
from runtime.host.machine import Gpu, Machine
from tests.harness.models.metadata import metadata

H100 = Gpu("NVIDIA H100 80GB HBM3", 90, 80 << 30, 79 << 30)
HERE = Machine(gpus=(H100,), driver="580.1", packages={"vllm": "0.31.0", "torch": "2.12.0+cu130"})
CHOICES = EngineChoices(
    cudagraph_mode="FULL",
    capture_sizes=(1, 8, 64),
    attention_backend="TRITON_ATTN",
    linear_backend="marlin",
    fusions=("fuse_act_quant",),
    max_num_batched_tokens=4096,
    kv_cache_dtype="fp8",
)
LIMITS = metadata().chat.limits
KEY = key_of(HERE, LIMITS)


def chat_with(choices: EngineChoices, key: TuningKey = KEY) -> ChatModel:
    figures = TunedFigures(itl_ms=4.0, ttft_ms=50.0, tokens_per_s=9000.0)
    base = TriedOptions(name="base", outcome="base", runs=(figures, figures))
    tried = TunedOptions(goal="latency", key=key, choices=choices, noise=0.01, candidates=(base,))
    return metadata().chat.model_copy(update={"engine_options": tried})


def test_all_that_was_chosen_is_set_where_the_operator_says_nothing() -> None:
    found = tuned(EngineOptions(), chat_with(CHOICES), KEY)
    assert found.left == ()
    assert {name: getattr(found.options, name) for name in EngineChoices.model_fields} == {
        name: getattr(CHOICES, name) for name in EngineChoices.model_fields
    }
    assert found.options == with_choices(EngineOptions(), CHOICES)
    assert "cudagraph_mode=FULL" in found.used
    assert "capture_sizes=1,8,64" in found.used


@pytest.mark.parametrize(
    ("option", "value"),
    [("attention_backend", "FLASH_ATTN"), ("max_num_batched_tokens", 512), ("kv_cache_dtype", "fp8_e5m2")],
)
def test_a_variable_of_the_operator_wins_and_is_told(option: str, value: object) -> None:
    found = tuned(replace(EngineOptions(), **{option: value}), chat_with(CHOICES), KEY)
    assert getattr(found.options, option) == value
    assert found.left == (f"{option}: {VARIABLES[option]} says {value}",)
    assert found.options.cudagraph_mode == "FULL"


@pytest.mark.parametrize(("sequences", "taken"), [(None, True), (16, True), (320, True), (400, False), (1024, False)])
def test_steps_that_more_sequences_would_fill_are_left(sequences: int | None, taken: bool) -> None:
    """vLLM does not start with steps of fewer tokens than sequences, which MAX_NUM_SEQS_CHAT may raise."""
    choices = EngineChoices(cudagraph_mode="FULL", max_num_batched_tokens=512)
    found = tuned(EngineOptions(max_num_seqs=sequences), chat_with(choices), KEY)
    assert found.options.max_num_batched_tokens == (512 if taken else None)
    assert found.options.cudagraph_mode == "FULL"
    assert bool(found.left) is not taken


def test_an_engine_without_graphs_is_told_nothing_of_graphs() -> None:
    found = tuned(EngineOptions(enforce_eager=True), chat_with(CHOICES), KEY)
    assert (found.options.cudagraph_mode, found.options.capture_sizes, found.options.fusions) == (None, (), ())
    assert found.options.linear_backend == "marlin"
    assert len(found.left) == 3


CHANGED = {
    "engine": "vllm 0.25.1",
    "torch": "2.11.0",
    "driver": "590.2",
    "gpu": "NVIDIA H200",
    "gpu_memory_bytes": 94 << 30,
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 2,
}


@pytest.mark.parametrize("name", TuningKey.model_fields)
def test_whatever_differs_from_where_it_was_tuned_leaves_the_plain_options(name: str) -> None:
    here = KEY.model_copy(update={name: CHANGED[name]})
    found = tuned(EngineOptions(), chat_with(CHOICES), here)
    assert found.options == EngineOptions()
    assert found.used == ()
    assert found.left == (f"all: {name} is {CHANGED[name]}, was {getattr(KEY, name)}; build with --tune here",)


def test_another_number_of_gpus_a_model_is_another_key(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(machine, "describe", lambda: HERE)
    artifact = metadata().model_copy(update={"chat": chat_with(CHOICES)})
    with caplog.at_level(logging.INFO):
        engine = engines.create(Path("there"), artifact, EngineOptions())
    assert engine._options.cudagraph_mode == "FULL"
    assert "as tuned for latency: cudagraph_mode=FULL" in caplog.text
    caplog.clear()
    engine = engines.create(Path("there"), artifact, EngineOptions(tensor_parallel_size=2))
    assert engine._options.cudagraph_mode is None
    assert "tensor_parallel_size is 2, was 1" in caplog.text


def test_what_applies_here_is_told_for_each_option() -> None:
    chat = chat_with(EngineChoices(cudagraph_mode="FULL", linear_backend="marlin"))
    assert told_here(chat, HERE) == ["cudagraph_mode=FULL applies", "linear_backend=marlin applies"]
    assert told_here(chat_with(EngineChoices()), HERE) == []
    assert told_here(metadata().chat, HERE) == []


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(HERE, driver="570.9"), "driver is 570.9, was 580.1"),
        (replace(HERE, gpus=(replace(H100, name="NVIDIA H200"),)), "gpu is NVIDIA H200, was NVIDIA H100 80GB HBM3"),
        (replace(HERE, packages={**HERE.packages, "vllm": "0.32.0"}), "engine is vllm 0.32.0, was vllm 0.31.0"),
        (Machine(), "engine is vllm None, was vllm 0.31.0"),
    ],
)
def test_on_another_machine_it_is_told_what_differs(other: Machine, told: str) -> None:
    (line,) = told_here(chat_with(CHOICES), other)
    assert line == f"left: all: {told}; build with --tune here"


def test_metadata_without_tuning_are_written_as_they_always_were_and_with_it_read_back(tmp_path: Path) -> None:
    assert "engine_options" not in metadata().chat.model_dump()
    chat = chat_with(EngineChoices(cudagraph_mode="FULL"))
    assert chat.model_dump(mode="json")["engine_options"]["choices"] == {"cudagraph_mode": "FULL"}
    whole: BuildMetadata = metadata().model_copy(update={"chat": chat})
    whole.write(tmp_path)
    from runtime import artifact

    assert artifact.read(tmp_path).chat == chat


@pytest.mark.parametrize(
    "wrong",
    [{"attention_backend": "a b"}, {"fusions": ("x;y",)}, {"capture_sizes": (0,)}, {"cudagraph_mode": "NONE"}],
)
def test_what_cannot_be_an_option_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EngineChoices(**wrong)  # type: ignore[arg-type]


@given(st.lists(st.sampled_from(sorted(EngineChoices.model_fields)), unique=True), st.booleans())
def test_what_was_not_chosen_stays_as_it_was(names: list[str], eager: bool) -> None:
    choices = EngineChoices(**{name: getattr(CHOICES, name) for name in names})
    before = EngineOptions(enforce_eager=eager, max_num_seqs=7)
    after = tuned(before, chat_with(choices), KEY).options
    unchanged = {name for name in EngineOptions.__slots__ if name not in names}
    assert all(getattr(after, name) == getattr(before, name) for name in unchanged)


def test_host_memory_is_refused_beyond_the_machine_and_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "host_memory_bytes", lambda: 100 << 30)
    monkeypatch.setattr(arguments.contract, "seams", _Holds())
    assert arguments._offloading(0, on_cpu=True) == {}
    assert arguments._offloading(80, on_cpu=False) == {"kv_offloading_size": 80, "kv_offloading_backend": "native"}
    with pytest.raises(EngineOptionError, match=r"at most 80\.0 \(80% of this machine's memory\), found 81"):
        arguments._offloading(81, on_cpu=False)
    with pytest.raises(EngineOptionError, match="expected 0 on a CPU"):
        arguments._offloading(1, on_cpu=True)
    _Holds.known = False
    with pytest.raises(EngineOptionError, match="expected 0 with vLLM 0, found 1"):
        arguments._offloading(1, on_cpu=False)
    with pytest.raises(EngineOptionError, match="does not take the options"):
        arguments._tuned(EngineOptions(cudagraph_mode="FULL"))


class _Holds:
    known, release = True, "vLLM 0"

    def holds(self, name: str) -> bool:
        return self.known


@pytest.fixture(autouse=True)
def _known_again() -> None:
    _Holds.known = True


@pytest.mark.parametrize(("told", "found"), [("max\n", 1 << 60), ("1073741824\n", 1 << 30), ("", 1 << 60)])
def test_a_containers_limit_is_all_the_memory_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, found: int
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(told)
    monkeypatch.setattr(machine, "MEMORY_LIMITS", (str(limit), str(tmp_path / "none")))
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 1 << 30)
    assert machine.host_memory_bytes() == found
