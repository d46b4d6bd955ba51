"""Values that Python takes for false, 0 and 0.0 and an empty text, are values: what is set is gated and served."""

from __future__ import annotations

import ast
import asyncio
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as run_with
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pipeline.lanes.gate_specs import OPTIONS, SPECS, GateSpec
from pipeline.lanes.gates import gates_of
from pipeline.plan import ToolPlan
from pipeline.publish import describe
from pipeline.quantize import QuantizeJob
from pipeline.settings import PipelineSettings
from pipeline.settings import load as load_pipeline
from pipeline.source import SourceFacts
from pipeline.validate import tool_accuracy
from runtime import artifact, defaults, engines
from runtime.artifact import ChatModel, Limits, Quantization, ToolModel
from runtime.defaults import first_set
from runtime.deployment.classifier import Decision
from runtime.deployment.serving import plan
from runtime.deployment.settings import RuntimeSettings
from runtime.engines import EngineOptions
from runtime.engines.trt.arguments import kv_cache_arguments
from tests.harness.builds.progress import RecordedProgress
from tests.harness.scripted import settings

ROOT = Path(__file__).resolve().parents[3]
TOOL_ONLY = ROOT / "tests" / "data" / "artifacts" / "tool-only"

PROBABILITIES = st.none() | st.sampled_from([0.0, -0.0, 1.0]) | st.floats(0, 1)


class Unsure:
    """A classifier that never sees a reason for yes: only a threshold of 0 makes it say so."""

    made: typing.ClassVar[list[dict[str, Any]]] = []

    def __init__(self, folder: Path, **options: Any) -> None:
        self.made.append(options)
        self._threshold = options["threshold"]

    async def start(self) -> None: ...

    async def shutdown(self) -> None: ...

    async def decide(self, history: Sequence[str], utterance: str) -> Decision:
        await asyncio.sleep(0)
        return Decision(self._threshold <= 0.0, 0.0)


def planned(threshold: float | None, window: int) -> ToolModel:
    """What the metadata says of a classifier that a plan and a training report describe."""
    facts = SourceFacts("tool", "folder", "tool", Path("tool"))
    return describe.tool_model(ToolPlan(facts, window, 1), "0", {} if threshold is None else {"threshold": threshold})


@run_with(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(own=PROBABILITIES, asked=PROBABILITIES, window=st.integers(1, 8192))
@example(own=0.0, asked=None, window=4096)
@example(own=0.9, asked=0.0, window=512)
@example(own=None, asked=0.0, window=1)
def test_a_threshold_is_gated_and_served_as_it_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: float | None, asked: float | None, window: int
) -> None:
    monkeypatch.setattr(tool_accuracy, "ToolClassifier", Unsure)
    monkeypatch.setattr(Unsure, "made", [])
    tool = planned(own, window)
    artifact.read(TOOL_ONLY).model_copy(update={"tool": tool}).write(tmp_path)
    written = artifact.read(tmp_path)
    assert written.tool == tool
    assert written.tool is not None
    accuracy = tool_accuracy.tool_accuracy(tmp_path, written.tool, "cpu", RecordedProgress())
    [gated] = Unsure.made
    served = plan(settings(), written).tool
    assert served is not None
    assert (gated["threshold"], gated["max_tokens"]) == (served.threshold, served.max_tokens)
    assert served.threshold == (defaults.TOOL_THRESHOLD if own is None else own)
    # Of the held-out utterances fewer than all ask for the screen, and fewer than all do not.
    yes = tool_accuracy.tool_accuracy(tmp_path, planned(0.0, window), "cpu", RecordedProgress())
    assert accuracy == pytest.approx(yes if served.threshold == 0 else 1 - yes)
    assert 0 < yes < 1
    overridden = plan(settings(tool_decision_threshold=asked), written).tool
    assert overridden is not None
    assert overridden.threshold == (served.threshold if asked is None else asked)


def lowest(model: type[BaseModel], name: str) -> list[Any]:
    """The values that Python takes for false and a variable takes as they are."""
    legal = []
    for value in (0, 0.0, False):
        try:
            taken = getattr(model.model_validate({name: value}), name)
        except ValidationError:
            continue
        if type(taken) in (int, float, bool) and not taken:
            legal.append(taken)
    return legal


FALSE = [
    (model, name, value)
    for model in (RuntimeSettings, PipelineSettings)
    for name in model.model_fields
    for value in lowest(model, name)
]


@pytest.mark.parametrize(
    ("model", "name", "value"), FALSE, ids=[f"{model.__module__}.{name}={value!r}" for model, name, value in FALSE]
)
def test_a_variable_that_is_set_to_a_false_value_has_it(
    monkeypatch: pytest.MonkeyPatch, model: type[BaseModel], name: str, value: object
) -> None:
    if model is RuntimeSettings:
        monkeypatch.setenv(name.upper(), str(value))
        assert getattr(RuntimeSettings(), name) == value
    else:
        loaded = load_pipeline({name.upper(): str(value)})
        assert (getattr(loaded.settings, name), loaded.problems) == (value, ())


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RuntimeSettings.model_fields:
        monkeypatch.setenv(name.upper(), "")
    assert {name: getattr(RuntimeSettings(), name) for name in RuntimeSettings.model_fields} == {
        name: info.default for name, info in RuntimeSettings.model_fields.items()
    }
    empty = load_pipeline({name.upper(): "" for name in PipelineSettings.model_fields})
    assert (empty.settings, empty.problems) == (PipelineSettings(), ())


def test_the_false_values_that_variables_take_are_known() -> None:
    known = {name for _, name, value in FALSE if value == 0}
    assert known >= {
        "tool_decision_threshold", "history_max_tokens", "ws_handshake_acquire_timeout_s", "drain_timeout_s",
        "cache_reset_interval_seconds", "ws_max_messages_per_window", "chat_temperature", "chat_top_k", "chat_min_p",
    }  # fmt: skip


def test_a_history_of_nothing_stays_nothing() -> None:
    golden = artifact.read(ROOT / "tests" / "data" / "artifacts" / "cpu-int8")
    served = plan(settings(history_max_tokens=0), golden).chat
    assert served is not None
    assert served.budgets.history == 0


@pytest.mark.parametrize("spec", OPTIONS, ids=str)
def test_a_gate_with_a_bound_of_zero_is_a_gate(spec: GateSpec) -> None:
    gated = [gate for gate in gates_of(dict.fromkeys(SPECS, 0.0), {spec: 0.0}) if gate.relation is not None]
    assert [(gate.name, gate.threshold) for gate in gated] == [(spec.name, 0.0)]


@given(st.lists(st.none() | st.sampled_from([0, 0.0, 5]) | st.integers(), max_size=4), st.integers())
def test_the_first_that_is_set_wins(values: list[float | None], default: int) -> None:
    named = [value for value in values if value is not None]
    assert first_set(*values, default=default) == (named[0] if named else default)
    assert first_set(None, "", "x", default="y") == ""


def test_options_of_an_engine_that_are_zero_are_not_replaced() -> None:
    limits = Limits(max_batch_size=8, max_input_len=9, max_output_len=9, max_model_len=18, tensor_parallel_size=2)
    zero = EngineOptions(max_num_seqs=0, max_model_len=0, tensor_parallel_size=0, kv_free_fraction=0.0)
    limited = engines.loaders._limited(zero, limits)
    assert (limited.max_num_seqs, limited.max_model_len, limited.tensor_parallel_size) == (0, 0, 0)
    assert kv_cache_arguments(zero, None)["free_gpu_memory_fraction"] == 0.0


# The kind itself: no code asks with `or`, or bare `if`, whether an optional number is set


def optional_numbers() -> set[str]:
    """The fields that hold a number or nothing."""
    names = set()
    models: list[type[BaseModel]] = [RuntimeSettings, PipelineSettings, ToolModel, ChatModel, Limits, Quantization]
    hints = [(name, info.annotation) for model in models for name, info in model.model_fields.items()]
    for made in (EngineOptions, QuantizeJob):
        hints += typing.get_type_hints(made).items()
    for name, hint in hints:
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            kinds = set(typing.get_args(hint))
            if type(None) in kinds and kinds & {int, float}:
                names.add(name)
    return names


# A size of 0 is none: nothing is grouped then.
NO_SUCH_ZERO = {"group_size"}


def guesses(source: str) -> list[str]:
    """The expressions that take 0 for unset."""
    numbers = optional_numbers() - NO_SUCH_ZERO
    found = []
    for node in ast.walk(ast.parse(source)):
        tested: list[ast.expr] = []
        if isinstance(node, ast.BoolOp):
            tested = node.values if isinstance(node.op, ast.And) else node.values[:-1]
            if isinstance(node.op, ast.Or) and any(isinstance(left, ast.Name | ast.Attribute) for left in tested):
                default = node.values[-1]
                number = (
                    isinstance(default, ast.Constant) and type(default.value) in (int, float) and default.value != 0
                )
                name = default.attr if isinstance(default, ast.Attribute) else getattr(default, "id", "")
                if number or name.isupper():  # `name or 0.9`, `name or DEFAULT`
                    found += [
                        ast.unparse(node) for left in node.values[:-1] if isinstance(left, ast.Name | ast.Attribute)
                    ]
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            tested = [node.test]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            tested = [node.operand]
        found += [ast.unparse(node)[:80] for part in tested if isinstance(part, ast.Attribute) and part.attr in numbers]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "x = tool.threshold or 0.66",
        "x = tool.threshold or DEFAULT",
        "x = fraction or 0.9",
        "x = fraction or defaults.GPU_ALONE",
        "x = settings.max_num_seqs or lane.batch",
        "reason = 'set' if settings.max_num_seqs else 'default'",
        "if not options.max_model_len: pass",
        "if settings.trt_max_batch_size and settings.trt_max_batch_size > 4: pass",
    ],
)
def test_a_guess_is_noticed(source: str) -> None:
    assert guesses(source)


@pytest.mark.house
def test_no_code_takes_zero_for_unset() -> None:
    assert {"threshold", "max_num_seqs", "kv_free_fraction", "tool_decision_threshold"} <= optional_numbers()
    found = {
        f"{path.relative_to(ROOT)}: {line}"
        for folder in ("runtime", "pipeline", "images")
        for path in ROOT.glob(f"{folder}/**/*.py")
        for line in guesses(path.read_text("utf-8"))
    }
    assert found == set()
