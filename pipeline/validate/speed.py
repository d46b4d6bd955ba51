"""The latency and throughput of an engine, and its answers to known prompts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from runtime.engines import Delta, Engine, Sampling
from runtime.text.replies.reply import generate
from runtime.text.replies.reply_format import PLAIN, ReplyFormat
from runtime.text.replies.speech import Heard, Speech


@dataclass(frozen=True, slots=True)
class Reply:
    """One generated reply, with its times.

    Attributes:
        text: what of it is speech.
        tokens: how many it has, those that are no speech among them.
        ttft_s: seconds from the request to the first spoken token.
        itl_s: mean seconds from one token to the next; none for a reply of one token.
        ended: whether the model ended it, and not the limit.
    """

    text: str
    tokens: int
    ttft_s: float
    itl_s: float | None
    ended: bool = False


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


async def reply_to(
    engine: Engine, prompt: Sequence[int], sampling: Sampling, form: ReplyFormat = PLAIN, thinking: int = 0
) -> Reply:
    """Generate one reply to its end, the way that the runtime does.

    Args:
        form: how the model's replies begin and end, and what in them is no speech.
        thinking: tokens that thought may take beside the reply.
    """
    begun = time.perf_counter()
    texts: list[str] = []
    spoken: list[tuple[float, int]] = []
    reasons: list[str | None] = []

    def take(delta: Delta, heard: Heard) -> None:
        reasons.append(delta.finish_reason)
        if delta.tokens > heard.hidden:
            spoken.append((time.perf_counter(), delta.tokens - heard.hidden))

    speech = Speech(take, texts.append, sanitize=False, form=form)
    await generate(engine, prompt, sampling, speech, form, thinking)
    speech.finish()
    text, ended = "".join(texts), bool(reasons) and reasons[-1] == "stop"
    tokens = speech.hidden_tokens + speech.spoken_tokens
    if not spoken:
        return Reply(text, tokens, time.perf_counter() - begun, None, ended)
    first, last = spoken[0][0], spoken[-1][0]
    later = sum(count for _, count in spoken[1:])
    return Reply(text, tokens, first - begun, (last - first) / later if later else None, ended)


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
