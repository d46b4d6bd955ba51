"""Latency of streamed replies."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

import pytest

from pipeline.validate.speed import Reply, greedy, latency_of, reply_to, throughput_of
from runtime.engines import Delta, Sampling


class Paced:
    """An engine that prefills for 20 ms and then makes two tokens every 10 ms, as many as it is asked for."""

    def __init__(self) -> None:
        self.asked: list[Sampling] = []

    async def generate(self, prompt: Sequence[int], sampling: Sampling, each: Callable[[Delta], None]) -> None:
        self.asked.append(sampling)
        await asyncio.sleep(0.02)
        each(Delta("a", 1))
        for _ in range((sampling.max_tokens - 1) // 2):
            await asyncio.sleep(0.01)
            each(Delta("bc", 2))


class Mute:
    async def generate(self, prompt: Sequence[int], sampling: Sampling, each: Callable[[Delta], None]) -> None:
        """Not a word."""


async def test_a_reply_is_timed_by_its_tokens() -> None:
    reply = await reply_to(Paced(), [1], greedy(9))
    assert (reply.text, reply.tokens) == ("abcbcbcbc", 9)
    assert reply.ttft_s >= 0.02
    assert reply.itl_s is not None
    assert 0.005 <= reply.itl_s < reply.ttft_s


async def test_a_reply_of_one_token_has_no_gap() -> None:
    assert (await reply_to(Paced(), [1], greedy(1))).itl_s is None


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


async def test_throughput_counts_all_streams_over_the_same_time() -> None:
    engine = Paced()
    tokens_per_s = await throughput_of(engine, [[1], [2], [3]], 9)
    # 27 tokens in at least 60 ms.
    assert 27 / 1.0 < tokens_per_s <= 27 / 0.06
    assert all(sampling.ignore_eos and sampling.max_tokens == 9 for sampling in engine.asked)
