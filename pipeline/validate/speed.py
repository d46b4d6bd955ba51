"""The latency and throughput of an engine, and its answers to known prompts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from runtime.engines import Delta, Engine, Sampling


@dataclass(frozen=True, slots=True)
class Reply:
    """One generated reply, with its times.

    Attributes:
        text: all of it.
        tokens: how many it has.
        ttft_s: seconds from the request to the first token.
        itl_s: mean seconds from one token to the next; none for a reply of one token.
    """

    text: str
    tokens: int
    ttft_s: float
    itl_s: float | None


@dataclass(frozen=True, slots=True)
class Latency:
    """The median latency of the replies of one stream.

    Attributes:
        ttft_ms: time to the first token, in milliseconds.
        itl_ms: time between tokens, in milliseconds.
    """

    ttft_ms: float
    itl_ms: float


def greedy(max_tokens: int, *, ignore_eos: bool = False) -> Sampling:
    """Return the sampling that takes the most probable token each time."""
    return Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=max_tokens, ignore_eos=ignore_eos)


async def reply_to(engine: Engine, prompt: Sequence[int], sampling: Sampling) -> Reply:
    """Generate one reply to its end."""
    begun = time.perf_counter()
    deltas: list[tuple[float, Delta]] = []
    await engine.generate(prompt, sampling, lambda delta: deltas.append((time.perf_counter(), delta)))
    text = "".join(delta.text for _, delta in deltas)
    timed = [(when, delta.tokens) for when, delta in deltas if delta.tokens]
    if not timed:
        return Reply(text, 0, time.perf_counter() - begun, None)
    first, last = timed[0][0], deltas[-1][0]
    tokens = sum(count for _, count in timed)
    later = tokens - timed[0][1]
    return Reply(text, tokens, first - begun, (last - first) / later if later else None)


def latency_of(replies: Sequence[Reply]) -> Latency:
    """Return the median latency of replies; NaN between tokens where no reply has a second one."""
    gaps = [reply.itl_s for reply in replies if reply.itl_s is not None]
    return Latency(
        ttft_ms=1000 * median(reply.ttft_s for reply in replies),
        itl_ms=1000 * median(gaps) if gaps else float("nan"),
    )


async def throughput_of(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Measure the tokens per second of all prompts at once, prefill included.

    Each is answered with exactly `tokens` tokens.
    """
    sampling = greedy(tokens, ignore_eos=True)
    begun = time.perf_counter()
    replies = await asyncio.gather(*(reply_to(engine, prompt, sampling) for prompt in prompts))
    return sum(reply.tokens for reply in replies) / (time.perf_counter() - begun)
