"""How replies under load are scored, and that an engine which mixes them up fails; scripted engines."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stages.stage import StageError
from pipeline.validate import text_under_load as load
from pipeline.validate.text_under_load import Asked, TextScore, asked_of, loss_of, replies_of, score_of, text_score
from runtime.engines import Delta, Sampling, TokenScore

LOGPROBS = st.floats(-90.0, 0.0)
REPLY = st.lists(LOGPROBS, min_size=1, max_size=40)
REPLIES = st.lists(REPLY, min_size=1, max_size=8)
TEXTS = [list(range(10, 700)), list(range(5000, 6200))]


def follow(token: int, turn: int) -> int:
    """The token that the scripted model finds most probable behind one."""
    return (token * 31 + turn) % 49_000


class Model:
    """A model whose every token follows from the prompt's last and its place; `fault` spoils replies under load."""

    def __init__(self, fault: Callable[[int, list[int]], list[int]] | None = None) -> None:
        self.fault = fault
        self.running = self.most = self.begun = 0

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        number, self.begun = self.begun, self.begun + 1
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        said = [follow(sum(prompt), turn) for turn in range(sampling.max_tokens)]
        for token in self.fault(number, said) if self.fault else said:
            on_delta(Delta("", 1, None, 0, (token,)))
        self.running -= 1

    async def score(self, tokens: Sequence[int]) -> list[TokenScore]:
        lengths = {asked.prompt: len(asked.prompt) for asked in ASKED}
        prompt = next(prompt for prompt in lengths if tuple(tokens[: len(prompt)]) == prompt)
        reply = [
            TokenScore(-0.3 if token == follow(sum(prompt), turn) else -9.0, token)
            for turn, token in enumerate(tokens[len(prompt) :])
        ]
        return [TokenScore(-1.0, token) for token in tokens[1 : len(prompt)]] + reply


ASKED = asked_of(TEXTS, 16, longest_prompt=500, longest_reply=128)


def loss(fault: Callable[[int, list[int]], list[int]] | None) -> load.TextLoss:
    async def measure() -> load.TextLoss:
        model, plain = Model(fault), Model()
        served = await replies_of(model, ASKED, 16)  # type: ignore[arg-type]
        own = await replies_of(plain, ASKED, 16)  # type: ignore[arg-type]
        assert model.most == 16
        found = [await score_of(plain, ASKED, replies) for replies in (served, own)]  # type: ignore[arg-type]
        return loss_of(*found)

    return asyncio.run(measure())


def test_a_sound_engine_passes() -> None:
    assert loss(None) == load.TextLoss(0.0, 0.0)


def swapped(number: int, said: list[int]) -> list[int]:
    """Another row's tokens, from the middle on, in one reply of all."""
    return said if number != 9 else said[: len(said) // 2] + [token + 1 for token in said[len(said) // 2 :]]


def few(number: int, said: list[int]) -> list[int]:
    """Four wrong tokens in one reply of all."""
    return said if number != 5 else [1, 2, 3, 4, *said[4:]]


def everywhere(number: int, said: list[int]) -> list[int]:
    """One wrong token in each of many replies: none is bad, and all are a little."""
    return said if number % 2 else [said[0] + 1, *said[1:]]


@pytest.mark.parametrize("fault", [swapped, few, everywhere])
def test_a_broken_engine_fails(fault: Callable[[int, list[int]], list[int]]) -> None:
    found = loss(fault)
    assert not found.passed
    assert "less probable" in str(found)


def test_prompts_and_replies_have_several_lengths_and_fill_the_engine() -> None:
    assert len(ASKED) == 32
    assert len({len(one.prompt) for one in ASKED}) == len(load.PROMPT_LENGTHS)
    assert {one.reply_tokens for one in ASKED} == set(load.REPLY_LENGTHS)
    assert len({one.prompt for one in ASKED}) == len(ASKED)


@given(st.lists(st.lists(st.integers(0, 9), max_size=30), max_size=4), st.integers(1, 600), st.integers(1, 90))
def test_prompts_fit_and_without_text_there_are_none(texts: list[list[int]], streams: int, longest: int) -> None:
    if not any(texts):
        with pytest.raises(StageError, match="expected held-out text"):
            asked_of(texts, streams, longest_prompt=longest, longest_reply=longest)
        return
    asked = asked_of(texts, streams, longest_prompt=longest, longest_reply=longest)
    assert min(load.ROUNDS * streams, load.MOST_PROMPTS) == len(asked)
    assert all(1 <= len(one.prompt) <= longest and 1 <= one.reply_tokens <= longest for one in asked)


@pytest.mark.parametrize("wrong", [[], [[]], [[-1.0], []], [[math.nan]], [[-1.0, math.nan]], [[0.5]], [[math.inf]]])
def test_what_is_no_score_is_refused(wrong: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="expected"):
        text_score(wrong)


def test_an_impossible_token_counts_and_stays_a_number() -> None:
    score = text_score([[-math.inf] * 20, [-0.1]])
    assert score.worst == load.IMPOSSIBLE
    assert math.isfinite(score.mean)
    assert not loss_of(score, text_score([[-0.1]])).passed


@pytest.mark.parametrize("replies", [[], [(1,)], [(1,), ()]])
def test_missing_and_empty_replies_are_refused(replies: list[tuple[int, ...]]) -> None:
    asked = [Asked((1, 2), 3), Asked((3, 4), 3)]
    with pytest.raises(StageError, match="expected"):
        asyncio.run(score_of(Model(), asked, replies))  # type: ignore[arg-type]


@given(REPLIES)
def test_the_worst_is_one_of_them_and_the_order_does_not_matter(replies: list[list[float]]) -> None:
    score = text_score(replies)
    assert score.worst == min(text_score([reply]).worst for reply in replies)
    assert score.worst == text_score(replies[::-1]).worst
    assert math.isclose(score.mean, text_score(replies[::-1]).mean, rel_tol=1e-9, abs_tol=1e-12)
    assert loss_of(score, score) == load.TextLoss(0.0, 0.0)


@given(REPLY, st.data())
def test_a_less_probable_token_never_makes_a_reply_better(reply: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(reply) - 1))
    worse = [*reply[:place], reply[place] - data.draw(st.floats(0, 9)), *reply[place + 1 :]]
    assert load.worst_stretch(worse) <= load.worst_stretch(reply) + 1e-9


@given(REPLY)
def test_a_short_reply_is_no_worse_than_its_mean_and_one_reply_is_enough(reply: list[float]) -> None:
    worst = load.worst_stretch(reply)
    assert min(reply) - 1e-9 <= worst <= 0
    if len(reply) <= load.STRETCH:
        assert math.isclose(worst, sum(reply) / load.STRETCH, abs_tol=1e-9)


@given(st.floats(-50, 0), st.floats(-50, 0), st.floats(-50, 0), st.floats(-50, 0))
def test_a_loss_is_never_negative_and_a_better_text_always_passes(a: float, b: float, c: float, d: float) -> None:
    found = loss_of(TextScore(a, b), TextScore(c, d))
    assert found.mean >= 0
    assert found.worst >= 0
    if a >= c and b >= d:
        assert found.passed
