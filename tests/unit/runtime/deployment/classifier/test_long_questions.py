"""Whatever a question holds, it costs a bounded part of the worker's time, and nobody waits for all others'."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runtime.deployment.classifier import ToolClassifier, ToolClosedError, format_utterances
from runtime.deployment.classifier.model import LEAST_CHARACTERS, SequenceClassifier
from runtime.deployment.classifier.tool_classifier import BATCH_CHARACTERS
from tests.harness.models.classifiers import WORDS, checkpoint

# What gives few tokens for its length: a word that no vocabulary has, spaces, turns that say nothing.
FEW_TOKENS = ["1", "a", "ſ", " ", "\n", "\u200b", "😀", "1 " + " " * 200]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module", params=[64, 8])
def model(folder: Path, request: pytest.FixtureRequest) -> SequenceClassifier:
    made = SequenceClassifier(folder, request.param, (1,), "cpu", None, 1)
    made.place()
    return made


@pytest.fixture
async def running(folder: Path) -> AsyncIterator[ToolClassifier]:
    made = ToolClassifier(folder, threshold=0.5, max_tokens=64)
    await made.start()
    yield made
    await made.shutdown()


class Counting:
    """A tokenizer that counts the characters that it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def encode(self, text: str) -> Any:
        self.characters += len(text)
        return self._tokenizer.encode(text)


@pytest.mark.parametrize("unit", FEW_TOKENS)
@pytest.mark.parametrize("behind", [(), ("hi",), ("hi",) * 500, ("",) * 500])
def test_what_is_tokenized_of_a_question_is_bounded(
    model: SequenceClassifier, monkeypatch: pytest.MonkeyPatch, unit: str, behind: tuple[str, ...]
) -> None:
    long = (unit * (250_000 // len(unit)), *behind)
    counting = Counting(model._tokenizer)
    monkeypatch.setattr(model, "_tokenizer", counting)
    ids = model._encode(long)
    assert counting.characters <= 3 * model.most_characters
    assert ids == model._encode(long)
    end = format_utterances(long)[-model.most_characters :]
    assert ids == counting._tokenizer.encode(end).ids, "its last part is what counts"


LONG = "x" * 150
TURN = st.lists(st.sampled_from([*WORDS, LONG, " ", "\n", "12"]), max_size=40).map(" ".join)


@example([f"{'look ' * 28}at at {LONG} {LONG}", f"{'look ' * 23}at at at at {LONG} {LONG} {LONG}"])  # cut within an x
@given(st.lists(TURN, min_size=1, max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_of_a_question_within_the_bound_everything_counts(model: SequenceClassifier, turns: list[str]) -> None:
    text = format_utterances(turns)
    if len(text) <= model.most_characters:
        assert model._encode(tuple(turns)) == model._tokenizer.encode(text).ids


class Gate:
    """Holds the worker before each batch, and notes how many questions each has."""

    def __init__(self, model: SequenceClassifier) -> None:
        self._forward = model.probabilities
        self.entered, self.free = threading.Semaphore(0), threading.Semaphore(0)
        self.sizes: list[int] = []

    def probabilities(self, conversations: Any) -> Any:
        self.sizes.append(len(conversations))
        self.entered.release()
        assert self.free.acquire(timeout=60)
        return self._forward(conversations)


async def test_nobody_waits_for_all_others(running: ToolClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    assert running._model is not None
    gate = Gate(running._model)
    monkeypatch.setattr(running._model, "probabilities", gate.probabilities)
    first = asyncio.create_task(running.decide([], "hello"))
    assert await asyncio.to_thread(gate.entered.acquire, timeout=60)
    full = BATCH_CHARACTERS // LEAST_CHARACTERS
    long = [asyncio.create_task(running.decide(["1" * 250_000], "hi")) for _ in range(3 * full)]
    short = [asyncio.create_task(running.decide([], "hi")) for _ in range(100)]
    await asyncio.sleep(0)
    for number in range(2):
        gate.free.release()
        assert await asyncio.to_thread(gate.entered.acquire, timeout=60)
        assert gate.sizes[1:] == [full] * (number + 1)
    await asyncio.wait_for(asyncio.gather(first, *long[:full]), 60)
    assert not any(task.done() for task in long[full:])
    for _ in range(4):
        gate.free.release()
    await asyncio.wait_for(asyncio.gather(*long, *short), 60)
    assert gate.sizes == [1, full, full, full, 100]


async def test_a_shutdown_fails_all_that_waits_however_many_batches_that_were(
    running: ToolClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert running._model is not None
    gate = Gate(running._model)
    monkeypatch.setattr(running._model, "probabilities", gate.probabilities)
    first = asyncio.create_task(running.decide([], "hello"))
    assert await asyncio.to_thread(gate.entered.acquire, timeout=60)
    rest = [asyncio.create_task(running.decide(["1" * 250_000], "hi")) for _ in range(50)]
    await asyncio.sleep(0)
    ending = asyncio.create_task(running.shutdown())
    await asyncio.sleep(0)
    gate.free.release()
    await asyncio.wait_for(ending, 60)
    await first
    outcomes = await asyncio.gather(*rest, return_exceptions=True)
    assert all(isinstance(outcome, ToolClosedError) for outcome in outcomes)
    assert gate.sizes == [1]
