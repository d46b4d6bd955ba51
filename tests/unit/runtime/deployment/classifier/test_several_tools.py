"""A classifier with several tools: each by its own threshold, the most probable first, both kinds of heads."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from runtime import artifact
from runtime.artifact import BuildMetadata, Source, ToolLabel, ToolModel
from runtime.deployment import serving
from runtime.deployment.classifier import Decision, Tool, ToolClassifier, tools_of
from tests.harness import scripted
from tests.harness.models.classifiers import WORDS, checkpoint

ROOT = Path(__file__).resolve().parents[5]
TOOL_ONLY = ROOT / "tests" / "data" / "artifacts" / "tool-only"
NAMES = ("none", "take_screenshot", "play_music", "set_timer")
TEXTS = [*WORDS, "look at this", "what is on my screen now", "hello you cat the"]


@pytest.fixture(scope="module", params=["single", "multi"])
def head(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(head: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("bert", tmp_path_factory.mktemp(head), names=NAMES, independent=head == "multi")


def reference(folder: Path, head: str, text: str) -> list[float]:
    """What transformers itself says of each label."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).logits[0]
    found: list[float] = (logits.sigmoid() if head == "multi" else logits.softmax(-1)).tolist()
    return found


async def decided(folder: Path, tools: tuple[Tool, ...], texts: list[str]) -> list[Decision]:
    running = ToolClassifier(folder, threshold=0.5, max_tokens=64, tools=tools)
    await running.start()
    try:
        return list(await asyncio.gather(*(running.decide((), text) for text in texts)))
    finally:
        await running.shutdown()


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(thresholds=st.tuples(*[st.floats(0, 1)] * 3), order=st.permutations([1, 2, 3]))
def test_every_tool_that_passes_its_threshold_is_asked_for_most_probable_first(
    folder: Path, head: str, thresholds: tuple[float, ...], order: list[int]
) -> None:
    tools = tuple(Tool(NAMES[label], label, thresholds[label - 1]) for label in order)
    for text, decision in zip(TEXTS[:5], asyncio.run(decided(folder, tools, TEXTS[:5])), strict=True):
        likely = reference(folder, head, text)
        told = {call.name: call.probability for call in decision.calls}
        for tool in tools:
            if abs(likely[tool.label] - tool.threshold) > 1e-4:
                assert (tool.name in told) == (likely[tool.label] >= tool.threshold)
        for name, probability in told.items():
            assert probability == pytest.approx(likely[NAMES.index(name)], abs=1e-4)
        assert list(told.values()) == sorted(told.values(), reverse=True)
        assert decision.take_screenshot == ("take_screenshot" in told)
        assert decision.probability == pytest.approx(likely[1], abs=1e-4)


def test_labels_that_do_not_exclude_each_other_are_asked_for_together(folder: Path, head: str) -> None:
    tools = tuple(Tool(name, label, 0.5) for label, name in enumerate(NAMES))
    most = max(len(decision.calls) for decision in asyncio.run(decided(folder, tools, TEXTS)))
    assert (most > 1) == (head == "multi")


def test_one_tool_is_told_as_before(folder: Path) -> None:
    async def ask() -> Decision:
        running = ToolClassifier(folder, threshold=0.0, max_tokens=64, positive_label=1)
        await running.start()
        try:
            return await running.decide((), "look at this")
        finally:
            await running.shutdown()

    decision = asyncio.run(ask())
    assert decision.take_screenshot
    assert decision.calls == ()


async def test_a_label_of_the_table_that_the_model_lacks_is_refused(folder: Path) -> None:
    tools = (Tool("a", 0, 0.5), Tool("b", 4, 0.5))
    with pytest.raises(ValueError, match="expected a label below 4, found tools with labels 0, 4"):
        await ToolClassifier(folder, threshold=0.5, max_tokens=64, tools=tools).start()


# The table in the artifact


def model(**fields: object) -> ToolModel:
    return ToolModel.model_validate({"source": Source(repo="a/b", content_sha256="0" * 64), "max_tokens": 64} | fields)


TABLE = (ToolLabel(label=1, name="take_screenshot"), ToolLabel(label=2, name="play_music", threshold=0.8))


def written(tool: ToolModel, folder: Path) -> BuildMetadata:
    artifact.read(TOOL_ONLY).model_copy(update={"tool": tool}).write(folder)
    return artifact.read(folder)


@pytest.mark.parametrize("positive", [1, None])
def test_the_table_is_served_as_it_was_written(tmp_path: Path, positive: int | None) -> None:
    tool = model(tools=TABLE, positive_label=positive, threshold=0.6)
    metadata = written(tool, tmp_path)
    assert metadata.tool == tool
    served = serving.plan(scripted.settings(), metadata).tool
    assert served is not None
    assert served.tools == (Tool("take_screenshot", 1, 0.6), Tool("play_music", 2, 0.8))
    asked = serving.plan(scripted.settings(tool_decision_threshold=0.0), metadata).tool
    assert asked is not None
    assert [tool.threshold for tool in asked.tools] == [0.0, 0.0]


def test_without_a_table_the_label_asks_for_a_screenshot() -> None:
    tool = model(positive_label=0)
    assert tool.served_tools == (ToolLabel(label=0, name="take_screenshot"),)
    assert tools_of(tool) == ()
    golden = artifact.read(TOOL_ONLY).tool
    assert golden is not None
    assert golden.served_tools == (ToolLabel(label=1, name="take_screenshot"),)


@pytest.mark.parametrize(
    "fields",
    [
        {"positive_label": None},
        {"tools": (TABLE[0], TABLE[0])},
        {"tools": (TABLE[0], ToolLabel(label=1, name="other"))},
        {"tools": ({"label": 0, "name": "two words"},)},
        {"tools": ({"label": -1, "name": "a"},)},
        {"tools": ({"label": 0, "name": "a", "threshold": 1.5},)},
    ],
)
def test_a_table_that_could_be_read_in_two_ways_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        model(**fields)
