"""A run whose tuning fails: the engine's plain options are built, and the line says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.plan import BuildPlan
from pipeline.stages.stage import StageError, StageResult
from pipeline.steps.stage_runner import StageRunner
from pipeline.steps.tune_step import tune
from runtime.artifact import Limits

LIMITS = Limits(max_batch_size=4, max_input_len=64, max_output_len=16, max_model_len=80)


Stage = Callable[[str, Mapping[str, Any], Callable[[Path], Any]], Any]


def tuned(stage: Stage, said: list[str], goal: str = "latency") -> Any:
    plan = SimpleNamespace(tune=goal, tune_kv_fp8=False, tune_minutes=3.0, engine="vllm")
    progress = SimpleNamespace(step=said.append)
    runner = SimpleNamespace(stage=stage, engine_identity=dict, machine=None, progress=progress)
    chat, model = SimpleNamespace(limits=LIMITS, method="none"), SimpleNamespace(folder=Path(), content="model")
    return tune(cast(BuildPlan, plan), cast(Any, chat), cast(Any, model), cast(StageRunner, runner))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            StageError("tune", "the plain options could not be measured: it hung", Path("model"), "read its log"),
            "stage tune failed: the plain options could not be measured: it hung",
        ),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (MemoryError(), "MemoryError"),
        (ImportError("libcuda.so.1: cannot open shared object file"), "ImportError: libcuda"),
        (RecursionError("deep"), "RecursionError: deep"),
        (KeyError("runs"), "KeyError: 'runs'"),
        (AssertionError("two\nlines"), "AssertionError: two\\nlines"),
        (ValueError("\udcff" + "x" * 5000), "ValueError: \\udcff"),
    ],
)
def test_where_tuning_fails_the_plain_options_are_built_and_the_line_says_why(error: Exception, told: str) -> None:
    def stage(name: str, inputs: Mapping[str, Any], work: Callable[[Path], Any]) -> Any:
        raise error

    said: list[str] = []
    assert tuned(stage, said) is None
    (line,) = said
    assert line.startswith(f"tune: {told}")
    assert "plain options are built" in line
    assert len(line) < 500
    assert line.isprintable()


@pytest.mark.parametrize("result", [{}, {"goal": "speed"}, {"candidates": [1]}])
def test_a_finished_stage_that_holds_no_options_is_not_baked(result: dict[str, Any]) -> None:
    def stage(name: str, inputs: Mapping[str, Any], work: Callable[[Path], Any]) -> StageResult:
        return StageResult(name, "key", Path(), result, 1.0, True, {})

    said: list[str] = []
    assert tuned(stage, said) is None
    assert "plain options are built" in said[0]


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_who_ends_the_build_ends_it(end: type[BaseException]) -> None:
    def stage(*_: object) -> Any:
        raise end

    with pytest.raises(end):
        tuned(stage, [])


def test_the_minutes_are_an_input_of_the_stage() -> None:
    told: list[Mapping[str, Any]] = []

    def stage(name: str, inputs: Mapping[str, Any], work: Callable[[Path], Any]) -> Any:
        told.append(inputs)
        raise StageError(name, "enough")

    tuned(stage, [])
    assert told[0]["minutes"] == 3.0


def test_nothing_is_tried_where_nothing_is_to_be_tuned() -> None:
    def stage(*arguments: object) -> Any:
        raise AssertionError(arguments)

    assert tuned(stage, [], goal="off") is None
