"""What differs between lanes and engines stands in their records and own modules; nothing else asks which it is."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from pipeline.lanes import LANES, METHODS, STYLES, VLLM
from pipeline.quantize import vllm as quantize_vllm
from pipeline.settings import PipelineSettings
from pipeline.stages import recipes
from pipeline.steps import lane_modules
from runtime.artifact import LaneName
from runtime.artifact.lanes import SERVED_ENGINES, SERVED_LANES
from runtime.deployment.settings import RuntimeSettings
from runtime.host.machine import RELEVANT_PACKAGES

ROOT = Path(__file__).parents[4]
LANE_NAMES = frozenset(get_args(LaneName))
ENGINE_NAMES = frozenset({lane.engine for lane in STYLES})
# Where a lane is a GPU's or not stands in its record too.
NAMES = LANE_NAMES | ENGINE_NAMES | {"cuda"}

# The records, and the modules of one lane alone.
ROOMS = ("pipeline/lanes/", "pipeline/quantize/", "pipeline/build/", "runtime/engines/", "runtime/artifact/lanes.py")

# Words that are names of something else too.
OTHER_MEANINGS = {
    (
        "runtime/artifact/metadata.py",
        "Literal['trt', 'vllm', 'cpu']",
    ): "the list of lanes that a type checker reads",
    ("runtime/artifact/labels.py", "cuda"): "a part of a label",
    ("runtime/host/machine.py", "vllm"): "a distribution",
    ("runtime/host/machine.py", "cuda"): "a device of PyTorch",
    ("runtime/host/machine.py", "cpu"): "a device of PyTorch",
    ("runtime/deployment/classifier/tool_classifier.py", "cpu"): "a device of PyTorch",
    ("runtime/deployment/classifier/model.py", "cuda"): "a device of PyTorch",
    ("runtime/deployment/classifier/facts.py", "cpu"): "a device of PyTorch",
}


def named(source: str) -> Iterator[tuple[int, str]]:
    """The lanes' and engines' names that code holds, with their lines; a `Literal` of them as it is written."""
    tree = ast.parse(source)
    literals = [node for node in ast.walk(tree) if isinstance(node, ast.Subscript) and is_literal(node)]
    inside = {id(part) for literal in literals for part in ast.walk(literal)}
    for literal in literals:
        if NAMES & {part.value for part in ast.walk(literal) if isinstance(part, ast.Constant)}:
            yield literal.lineno, ast.unparse(literal)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in NAMES and id(node) not in inside:
            yield node.lineno, str(node.value)


def is_literal(node: ast.Subscript) -> bool:
    return getattr(node.value, "id", getattr(node.value, "attr", "")) == "Literal"


def elsewhere() -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for package in ("pipeline", "runtime"):
        for path in sorted((ROOT / package).rglob("*.py")):
            where = path.relative_to(ROOT).as_posix()
            if not where.startswith(ROOMS):
                for line, name in named(path.read_text("utf-8")):
                    found.setdefault((where, name), []).append(line)
    return found


@pytest.mark.house
def test_no_code_outside_their_rooms_names_a_lane_or_an_engine() -> None:
    told = [f"{where}:{lines[0]} {name}" for (where, name), lines in elsewhere().items()]
    assert {key for key in elsewhere() if key not in OTHER_MEANINGS} == set(), told


@pytest.mark.house
def test_every_other_meaning_is_still_there() -> None:
    assert OTHER_MEANINGS.keys() <= elsewhere().keys()


@pytest.mark.parametrize(
    "source",
    [
        'x = 1 if lane.name == "trt" else 2',
        'x = engine in {"trt-pytorch", "other"}',
        'TABLE = {"cpu": 8, "other": 64}',
        'x = TABLE.get("vllm")',
        'x = LANES["vllm"].batch',
        'match lane:\n    case "trt":\n        pass',
        'def f(engine: str = "vllm") -> None: ...',
        'x = lane.device != "cuda"',
        'x: typing.Literal["trt", "cpu"] = y',
        'x = "cpu" if metadata.lane.startswith("c") else y',
    ],
)
def test_each_way_to_ask_is_found(source: str) -> None:
    assert list(named(source))


@pytest.mark.parametrize(
    "source", ['"""For trt."""', 'x: Literal["chat"] = y', 'x = "the trt lane"', "x = lane.on_gpu"]
)
def test_what_asks_nothing_is_not_found(source: str) -> None:
    assert not list(named(source))


def test_the_records_are_of_the_names_that_metadata_has() -> None:
    assert LANES.keys() == SERVED_LANES.keys() == LANE_NAMES
    assert SERVED_ENGINES.keys() == ENGINE_NAMES
    assert all(lane.name == name for name, lane in LANES.items())


def test_each_lane_names_modules_and_settings_that_are_there() -> None:
    for lane in STYLES:
        for name, offered, like in (
            (recipes.QUANTIZERS[lane.engine], "quantize", lane_modules.Quantizer),
            (recipes.BUILDERS[lane.engine], lane.builder, lane_modules.Builder),
        ):
            found = inspect.signature(getattr(import_module(name), offered))
            asked = inspect.signature(like.__call__)
            assert list(found.parameters) == list(asked.parameters)[1:], (name, offered)
        assert (ROOT / recipes.ENGINES[lane.engine].replace(".", "/")).with_suffix(".py").is_file()
        assert lane.samples_variable.lower() in PipelineSettings.model_fields
        assert set(lane.methods) <= METHODS.keys()
    for served in SERVED_LANES.values():
        assert RuntimeSettings.model_fields[served.batch_setting].annotation == int | None
        assert set(served.packages) <= set(RELEVANT_PACKAGES)


def test_the_quantizer_offers_what_the_lanes_do() -> None:
    offered = {method for lane in STYLES if lane.module == VLLM.module for method in lane.methods}
    assert offered == {*quantize_vllm.FORMATS, "none"}
