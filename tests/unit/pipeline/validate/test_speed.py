"""Latency of streamed replies."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

import pytest

from pipeline.validate import speed
from pipeline.validate.speed import Reply, greedy, latency_of, reply_to, throughput_of
from runtime.engines import Delta, Sampling


class Paced:
    """An engine that prefills for 20 ms and then makes two tokens every 10 ms, as many as it is asked for.

    By a clock of its own, which is the latest that any reply has come to.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Sampling] = []
        self.now = 5.0
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        each: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        self.asked.append(sampling)
        own = self.now + 0.02
        await self._until(own)
        each(Delta("a", 1))
        for _ in range((sampling.max_tokens - 1) // 2):
            own += 0.01
            await self._until(own)
            each(Delta("bc", 2))

    async def _until(self, when: float) -> None:
        await asyncio.sleep(0)
        self.now = max(self.now, when)


class Mute:
    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        each: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        """Not a word."""


async def test_a_reply_is_timed_by_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = await reply_to(Paced(monkeypatch), [1], greedy(9))
    assert (reply.text, reply.tokens) == ("abcbcbcbc", 9)
    assert reply.ttft_s == pytest.approx(0.02)
    assert reply.itl_s == pytest.approx(0.005)


async def test_a_reply_of_one_token_has_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await reply_to(Paced(monkeypatch), [1], greedy(1))).itl_s is None


async def test_a_reply_without_tokens_is_no_error() -> None:
    reply = await reply_to(Mute(), [1], greedy(5))
    assert (reply.text, reply.tokens, reply.itl_s) == ("", 0, None)


def test_latency_is_the_median() -> None:
    replies = [Reply("", 2, 0.1, 0.01), Reply("", 2, 0.2, 0.02), Reply("", 1, 9.0, None)]
    latency = latency_of(replies)
    assert latency.ttft_ms == pytest.approx(200)
    assert latency.itl_ms == pytest.approx(15)


def test_latency_without_a_second_token_is_no_number_and_so_fails_its_gate() -> None:
    assert math.isnan(latency_of([Reply("", 1, 0.1, None)]).itl_ms)


async def test_throughput_counts_all_streams_over_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Paced(monkeypatch)
    tokens_per_s = await throughput_of(engine, [[1], [2], [3]], 9)
    # Three times 9 tokens in 60 ms.
    assert tokens_per_s == pytest.approx(27 / 0.06)
    assert all(sampling.ignore_eos and sampling.max_tokens == 9 for sampling in engine.asked)
