"""Each stage's key counts what its work runs: the works are followed from the runner's own code, in every lane."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

from pipeline import run
from pipeline.lanes import lane_of
from pipeline.plan import TrtPlan
from pipeline.plan.prepare import Prepared
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.stages import recipe as recipes_home
from pipeline.stages import recipes
from pipeline.stages.recipe import CHOOSE_AT_CALL, NOT_COUNTED, OURS, ROOT
from pipeline.stages.stage import StageResult
from pipeline.steps import lane_modules, quantize_step, stage_runner, tune_step
from pipeline.steps.stage_runner import StageRunner

# The runner: it hands over what stands in the keys. What it calls is followed; what it says itself is not counted.
RUNNER = (run.__name__, quantize_step.__name__, stage_runner.__name__, tune_step.__name__)

LANES = {"vllm": ("vllm", ""), "cpu": ("cpu", ""), "trt": ("trt", "engine"), "trt-pytorch": ("trt", "pytorch")}

# The stages that start an engine. Those that start none must not count it.
STARTS = {
    ("build", "vllm"),
    ("tune", "vllm"),
    *((stage, engine) for stage in ("reference", "validate") for engine in recipes.ENGINES),
}


@dataclass
class Captured:
    """What the runner asked for: each stage's inputs and work, by its name."""

    engine: str
    inputs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    works: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(params=LANES)
def captured(
    request: pytest.FixtureRequest,
    prepared: Prepared,
    finished: Callable[..., StageResult],
    stage_names: set[str],
    silent: Progress,
    monkeypatch: pytest.MonkeyPatch,
) -> Captured:
    """A plan for the lane goes through the runner; no work is done."""
    lane = lane_of(*LANES[request.param])
    chat = prepared.plan.chat
    assert chat is not None
    if lane.name == "trt":
        chat = replace(chat, trt=TrtPlan("sm90_trt-llm-1.2.1_cuda13.0"))
    caught = Captured(lane.engine)

    def stage(self: StageRunner, name: str, inputs: Mapping[str, Any], work: Any, *, redo: bool = False) -> StageResult:
        caught.inputs[name], caught.works[name] = inputs, work
        return finished(name, inputs)

    monkeypatch.setattr(StageRunner, "stage", stage)
    plan = replace(prepared.plan, lane=lane, chat=chat, tune="latency" if lane.tunes else "off")
    Run(replace(prepared, plan=plan), silent).validate()
    assert caught.works.keys() == stage_names - (set() if lane.tunes else {"tune"})
    return caught


def runs(work: Any, engine: str) -> set[str]:
    """The modules outside the runner whose functions, classes and names a work reaches through the runner's code."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting: list[Any] = [work]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, partial):
            waiting.append(value.func)
        elif isinstance(value, ModuleType):
            if value.__name__.partition(".")[0] in OURS:
                found.add(value.__name__)
        elif isinstance(value, Mapping) and value.keys() >= {engine} and callable(value[engine]):
            waiting.append(value[engine])
        elif isinstance(value, FunctionType | type) or hasattr(value, "__func__"):
            function = getattr(value, "__func__", value)
            if function.__module__ not in RUNNER:
                if function.__module__.partition(".")[0] in OURS:
                    found.add(function.__module__)
            elif isinstance(function, FunctionType):
                waiting += list(reached(function, getattr(value, "__self__", None)))
    return found


def reached(function: FunctionType, owner: object) -> Iterator[Any]:
    """What a function of the runner can reach: globals, what it closes over, what it imports, its object's methods."""
    closed = dict(
        zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__ or ()), strict=True)
    )
    yield from closed.values()
    methods = type(closed.get("self", owner))
    for name in names_in(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]
        elif isinstance(method := vars(methods).get(name), FunctionType):
            yield method
        elif re.fullmatch(rf"({'|'.join(OURS)})(\.\w+)+", name):
            yield __import__(name, fromlist=["_"])


def names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


class Executed(ast.NodeTransformer):
    """Leaves out what only a type checker reads."""

    def visit_If(self, node: ast.If) -> Any:
        return node.orelse if ast.unparse(node.test).endswith("TYPE_CHECKING") else self.generic_visit(node)


@cache
def imports_of(name: str) -> frozenset[str]:
    """The modules of ours that a module's text names, told by other means than the recipe's."""
    path = file_of(name)
    tree = Executed().visit(ast.parse(path.read_text()))
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            words |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            words |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words |= {node.value, node.value.rpartition(".")[0]}
    return frozenset(
        word for word in words if word.partition(".")[0] in OURS and re.fullmatch(r"[\w.]+", word) and is_module(word)
    )


@cache
def is_module(name: str) -> bool:
    return file_of(name).is_file()


def file_of(name: str) -> Path:
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def everything(start: set[str], engine: str | None) -> set[str]:
    """All that these modules import, but for the engines that are not started."""
    (chooser,) = CHOOSE_AT_CALL
    chosen = {recipes.ENGINES[engine]} if engine else set()
    found: set[str] = set()
    waiting = [*start, *chosen]
    while waiting:
        name = waiting.pop()
        if name in found or name in NOT_COUNTED:
            continue
        found.add(name)
        imported = imports_of(name)
        if name == chooser:
            imported = frozenset(word for word in imported if not word.startswith("runtime.engines.") or word in chosen)
        waiting += imported
        waiting += [name.rpartition(".")[0]] if "." in name else []
    return found


def uncounted(stage: str, work: Any, engine: str, counted: set[str]) -> set[str]:
    started = engine if (stage, engine) in STARTS else None
    return everything(runs(work, engine), started) - counted


def test_every_stages_recipe_covers_the_import_closure_of_what_it_runs(captured: Captured) -> None:
    for stage, work in captured.works.items():
        assert runs(work, captured.engine) - NOT_COUNTED.keys(), stage
        counted = set(recipes_home.closure(recipes.recipe_inputs(stage, captured.engine).modules))
        assert not uncounted(stage, work, captured.engine, counted), stage


def test_a_recipe_that_lacks_a_module_of_its_stage_is_found(captured: Captured) -> None:
    for stage, work in captured.works.items():
        counted = set(recipes_home.closure(recipes.recipe_inputs(stage, captured.engine).modules))
        for name in runs(work, captured.engine) - NOT_COUNTED.keys():
            assert uncounted(stage, work, captured.engine, counted - {name}) == {name}


def test_the_works_run_what_one_expects(captured: Captured) -> None:
    ran = {stage: runs(work, captured.engine) - NOT_COUNTED.keys() for stage, work in captured.works.items()}
    assert {"pipeline.embedded.chat"} <= ran["source"]
    assert {"pipeline.embedded.tool"} <= ran["tool"]
    assert {"pipeline.quantize.calibration"} <= ran["calibration"]
    assert {recipes.QUANTIZERS[captured.engine]} <= ran["quantize"]
    assert {"pipeline.build.assemble", recipes.BUILDERS[captured.engine]} <= ran["build"]
    if "tune" in ran:
        assert ran["tune"] == {"pipeline.tuning.trials"}
        # Started by its name, as a process of its own.
        assert "pipeline.tuning.worker" in recipes_home.closure(recipes.recipe_inputs("tune", "vllm").modules)
    assert {"pipeline.validate.chat_figures"} <= ran["reference"]
    assert {"pipeline.validate.validation", "pipeline.lanes.gates"} <= ran["validate"]


def test_every_stages_key_holds_its_recipe(captured: Captured) -> None:
    for stage, inputs in captured.inputs.items():
        assert inputs["code"] == recipes.recipe_of(stage, captured.engine), stage


def test_the_lanes_of_the_runner_and_of_the_recipes_are_the_same() -> None:
    assert {engine: work.__module__ for engine, work in lane_modules.QUANTIZERS.items()} == recipes.QUANTIZERS
    assert {engine: work.__module__ for engine, work in lane_modules.BUILDERS.items()} == recipes.BUILDERS


def test_a_plan_without_a_chat_model_counts_no_engine() -> None:
    for stage in ("build", "validate"):
        assert not set(recipes.ENGINES.values()) & recipes_home.closure(recipes.recipe_inputs(stage).modules).keys()


def test_nothing_in_a_key_but_the_recipe_knows_where_our_modules_lie(captured: Captured) -> None:
    """So that a key that was made before modules are moved, and one after, differ because of the recipe alone."""
    ours = {path.relative_to(ROOT).with_suffix("") for package in OURS for path in (ROOT / package).rglob("*.py")}
    places = {".".join(path.parts).removesuffix(".__init__") for path in ours if len(path.parts) > 1}
    places = {place for place in places if "." in place} | {path.as_posix() for path in ours} | {str(ROOT)}
    of_ours = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, places))})(?![\w])")
    assert of_ours.search(f"worker={sorted(places)[0]}")
    for stage, inputs in captured.inputs.items():
        for text in texts({name: value for name, value in inputs.items() if name != "code"}):
            assert not of_ours.search(text), (stage, text)
            assert "standins" not in text


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield str(key)
            yield from texts(inside)
    elif isinstance(value, list | tuple | set | frozenset):
        for inside in value:
            yield from texts(inside)
    else:
        yield str(value)


def test_how_the_classifier_is_asked_and_what_is_compared_with_are_in_the_validations_key(captured: Captured) -> None:
    inputs = captured.inputs["validate"]
    assert inputs["tool"]["threshold"] == 0.66
    assert inputs["tool"]["max_tokens"] > 0
    assert inputs["reference"] == hashlib.sha256(b"{}").hexdigest()
    assert inputs["engine"] == captured.engine
