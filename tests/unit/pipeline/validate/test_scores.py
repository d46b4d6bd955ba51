"""Scores of held-out text, and what two models' scores say together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.embedded.texts import WINDOW_TOKENS
from pipeline.stages.stage import StageError
from pipeline.validate.scores import Scores, perplexity_ratio, score, top1_agreement, windows_of
from runtime.engines import TokenScore
from tests.harness.builds.progress import RecordedProgress


class Letters:
    """A tokenizer whose tokens are code points."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


class Even:
    """An engine for which every token has the probability 1/4, and which answers the last window first."""

    def __init__(self, windows: int) -> None:
        self._delay = 0.01 * windows

    async def score(self, tokens: Sequence[int]) -> list[TokenScore]:
        self._delay -= 0.01
        await asyncio.sleep(self._delay)
        return [TokenScore(math.log(0.25), token + 1) for token in tokens[1:]]


@given(st.lists(st.text(max_size=40)), st.integers(3, 20))
def test_windows_fit_the_context_and_hold_the_text(texts: list[str], context: int) -> None:
    windows = windows_of(Letters(), texts, context)
    assert all(2 <= len(window) < context for window in windows)
    held = [token for window in windows for token in window]
    whole = [ord(letter) for text in texts for letter in text]
    # Only single tokens at the end of a text may be missing.
    assert len(whole) - len(texts) <= len(held) <= len(whole)


def test_windows_of_a_long_context_are_bounded() -> None:
    assert max(map(len, windows_of(Letters(), ["x" * 5000], 100_000))) == WINDOW_TOKENS


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(StageError, match="at least 3 tokens"):
        windows_of(Letters(), ["text"], 2)


async def test_scores_come_in_the_order_of_the_windows() -> None:
    windows = [[1, 2, 3], [10, 20], [5, 6]]
    scores = await score(Even(len(windows)), windows, RecordedProgress())
    assert scores.top_tokens == (3, 4, 21, 7)
    assert scores.perplexity == pytest.approx(4.0)


async def test_no_text_is_refused() -> None:
    with pytest.raises(StageError, match="expected held-out text"):
        await score(Even(0), [], RecordedProgress())


def test_scores_read_as_they_were_written(tmp_path: Path) -> None:
    scores = Scores("ab", (-1.5, -0.25), (7, 9))
    scores.write(tmp_path / "scores.json")
    assert Scores.read(tmp_path / "scores.json") == scores


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"windows_sha256": "a", "logprobs": 1, "top_tokens": []}'])
def test_a_file_that_holds_no_scores_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(StageError, match="expected the float model's scores"):
        Scores.read(path)


def test_missing_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="FileNotFoundError"):
        Scores.read(tmp_path / "nowhere.json")


def test_a_model_agrees_with_itself() -> None:
    scores = Scores("a", (-1.0, -2.0), (1, 2))
    assert perplexity_ratio(scores, scores) == 1
    assert top1_agreement(scores, scores) == 1


def test_a_worse_model_has_a_ratio_above_one() -> None:
    reference, worse = Scores("a", (-1.0, -2.0), (1, 2)), Scores("a", (-1.5, -2.5), (1, 3))
    assert perplexity_ratio(worse, reference) == pytest.approx(math.exp(0.5))
    assert top1_agreement(worse, reference) == 0.5


def test_scores_of_other_text_are_not_compared() -> None:
    with pytest.raises(StageError, match="expected scores of the windows a, found b"):
        perplexity_ratio(Scores("b", (-1.0,), (1,)), Scores("a", (-1.0,), (1,)))
