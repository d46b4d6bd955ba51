"""Configs as they come: real ones of every family, changed in any way, end in a plan or in a line a problem."""

from __future__ import annotations

import copy
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import settings as pipeline_settings
from pipeline import source
from pipeline.plan import BuildPlan, BuildRequest, planner
from pipeline.problem import Problem, WrongRequestError
from pipeline.source.source_facts import SourceFacts
from tests.harness.builds.plans import CPU, HOPPER
from tests.harness.models import tiny

# What stands in configs where something else should: every kind of JSON value, and the odd ones that were seen.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**70, 0.5, 4096.0, math.nan, math.inf, "", "4096", "many", "\ud800", "two\nlines"),
    *([], {}, [1, 2], [None, 3], ["a", "b"], [[1]], [True], {"a": {"b": []}}, {"0": "no"}, "a" * 5_000),
)


@functools.cache
def families() -> tuple[tuple[str, str], ...]:
    """Every model type that generates text or classifies it, with the class that its config names."""
    from transformers.models.auto import modeling_auto as auto

    tables = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )
    found = []
    for table in tables:
        for model_type, name in table.items():
            found.append((model_type, name if isinstance(name, str) else name[0]))
    return tuple(found)


@functools.cache
def config_of(model_type: str, architecture: str) -> str | None:
    """The config of a family as transformers writes it; none of the few that have no default."""
    from transformers import AutoConfig

    try:
        made = AutoConfig.for_model(model_type)
        made.architectures = [architecture]
        return str(made.to_json_string(use_diff=False))
    except Exception:
        return None


def paths(document: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    found: list[tuple[Any, ...]] = []
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        found += [(*prefix, key), *paths(value, (*prefix, key))]
    return found


def changed(document: dict[str, Any], path: tuple[Any, ...], how: str, odd: Any) -> dict[str, Any]:
    """The document with another value at a place, or with that place taken out, listed, or written as a text."""
    made = copy.deepcopy(document)
    holder: Any = made
    for key in path[:-1]:
        holder = holder[key]
    value = holder[path[-1]]
    if how == "removed" and isinstance(holder, dict):
        del holder[path[-1]]
    else:
        new = {"listed": [value] * 3, "text": str(value), "float": value * 1.0 if isinstance(value, int) else odd}
        holder[path[-1]] = new.get(how, odd)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tiny.tokenizer(tmp_path_factory.mktemp("odd") / "model")
    header = b'{"weight": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}'
    (home / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    return home


def plan(folder: Path, lane: str, method: str, *, tool: bool = False) -> BuildPlan | tuple[Problem, ...]:
    """The plan of the model in a folder, or its problems; any other exception fails the test."""
    role = "TOOL_MODEL" if tool else "CHAT_MODEL"
    facts: SourceFacts = source.with_known_config(source.read_facts(str(folder), role), role)
    if not tool:
        facts = source.with_prompt_format(facts, think=False)
    request = BuildRequest(**{"tool" if tool else "chat": facts.ref}, lanes=(lane,), method=None if tool else method)
    chat, classifier = (None, facts) if tool else (facts, None)
    hardware = CPU if lane == "cpu" else HOPPER
    values = pipeline_settings.load({"TRT_MAX_BATCH_SIZE": "8"}).settings
    try:
        return planner.make_plan(request, values, chat, classifier, hardware)
    except WrongRequestError as error:
        return error.problems


def pure(config: dict[str, Any], lane: str, method: str, *, tool: bool) -> BuildPlan | tuple[Problem, ...]:
    """What our own reader makes of a config alone, which nothing else has looked at before."""
    facts = SourceFacts("org/model", "hub", "org/model", config=config, sizes={"model.safetensors": 10**6})
    request = BuildRequest(**{"tool" if tool else "chat": "org/model"}, lanes=(lane,), method=None if tool else method)
    chat, classifier = (None, facts) if tool else (facts, None)
    values = pipeline_settings.load({"TRT_MAX_BATCH_SIZE": "8"}).settings
    try:
        return planner.make_plan(request, values, chat, classifier, CPU if lane == "cpu" else HOPPER)
    except WrongRequestError as error:
        return error.problems


LANES = st.sampled_from(
    [("cpu", "awq"), ("cpu", "8bit"), ("vllm", "4bit"), ("vllm", "fp8"), ("trt", "4bit"), ("cpu", "none")]
)


@st.composite
def odd_configs(draw: st.DrawFn) -> tuple[dict[str, Any], bool]:
    """A family's config with up to three changes, and whether it is a classifier's."""
    model_type, architecture = draw(st.sampled_from(families()))
    text = config_of(model_type, architecture)
    document: dict[str, Any] = json.loads(text) if text else {"model_type": model_type}
    for _ in range(draw(st.integers(1, 3))):
        places = paths(document)
        # The few that a plan reads are drawn as often as the many that it does not.
        if not places:
            break
        short = [path for path in places if len(path) == 1 or path[0] in ("text_config", "quantization_config")]
        path = draw(st.sampled_from(draw(st.sampled_from([places, short]))))
        how = draw(st.sampled_from(["odd", "odd", "removed", "listed", "text", "float"]))
        document = changed(document, path, how, draw(st.sampled_from(ODD)))
    if draw(st.booleans()):
        document["quantization_config"] = draw(
            st.sampled_from(ODD)
            | st.fixed_dictionaries(
                {"quant_method": st.sampled_from(("gptq", "fp8", "compressed-tensors", "modelopt", "mxfp4", *ODD))},
                optional={
                    key: st.sampled_from(ODD) for key in ("bits", "config_groups", "format", "group_size", "ignore")
                },
            )
        )
    return document, architecture.endswith("ForSequenceClassification")


def check(made: BuildPlan | tuple[Problem, ...]) -> None:
    if isinstance(made, BuildPlan):
        return
    assert made
    for problem in made:
        line = str(problem)
        assert line.isprintable(), line
        line.encode("utf-8")


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(odd_configs(), LANES)
def test_our_reader_ends_in_a_plan_or_in_problems(odd: tuple[dict[str, Any], bool], way: tuple[str, str]) -> None:
    config, tool = odd
    check(pure(config, *way, tool=tool))


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(odd=odd_configs(), way=LANES)
def test_a_folder_ends_in_a_plan_or_in_problems(
    folder: Path, odd: tuple[dict[str, Any], bool], way: tuple[str, str]
) -> None:
    config, tool = odd
    (folder / "config.json").write_text(json.dumps(config))
    check(plan(folder, *way, tool=tool))
