"""A run whose tuning fails: the engine's plain options are built, and the line says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.run import Run
from pipeline.stages.stage import StageError
from runtime.artifact import Limits

LIMITS = Limits(max_batch_size=4, max_input_len=64, max_output_len=16, max_model_len=80)


def tuned(stage: Callable[..., Any], said: list[str], goal: str = "latency") -> Any:
    run = SimpleNamespace(
        plan=SimpleNamespace(tune=goal, tune_kv_fp8=False, engine="vllm"),
        runner=SimpleNamespace(stage=stage, engine_identity=dict, machine=None),
        progress=SimpleNamespace(step=said.append),
    )
    chat, model = SimpleNamespace(limits=LIMITS, method="none"), SimpleNamespace(folder=Path(), content="model")
    return Run._tune(run, chat, model)  # type: ignore[arg-type]


def test_where_tuning_fails_the_plain_options_are_built_and_the_line_says_why() -> None:
    def stage(name: str, inputs: Mapping[str, Any], work: Callable[[Path], Any]) -> Any:
        raise StageError(
            name, "the plain options could not be measured: the engine hung", Path("model"), "read its log"
        )

    said: list[str] = []
    assert tuned(stage, said) is None
    (line,) = said
    assert line.startswith("tune: ")
    assert "the engine hung" in line
    assert "plain options are built" in line


def test_nothing_is_tried_where_nothing_is_to_be_tuned() -> None:
    def stage(*arguments: object) -> Any:
        raise AssertionError(arguments)

    assert tuned(stage, [], goal="off") is None
