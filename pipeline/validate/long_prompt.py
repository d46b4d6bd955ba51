"""What a model knows at the end of a full prompt, against what it knows there with a short one.

The held-out texts are shorter than 200 tokens, and prompts of thousands are promised. Faults of a model's positions (a
scaling that was lost on the way, a window that is shorter than its config says) show at such lengths and nowhere else.

The texts, one after the other, fill the longest prompt. Near its end the engine says one token at a time which comes
next, once behind all that stands before it, and once behind the last few hundred tokens. A sound model is right as
often with more before it, or oftener; a broken one is hardly ever right there. No float model is needed for it, so that
what came quantized is measured as well, and only the first prompt costs: the others find it in the prefix cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from pipeline.stages.stage import StageError
from pipeline.validate.speed import greedy
from runtime.artifact import Limits
from runtime.artifact.lanes import LONG_PROMPT_TOKENS
from runtime.engines import Delta, Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that are asked for, and how far apart they stand: a quarter of a thousand tokens' end.
PROBES, STEP = 48, 5
# What a short prompt begins with, before the first of them.
SHORT_TOKENS = 256
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """A text that fills the longest prompt, and the places near its end that are asked about.

    Attributes:
        tokens: one more than the longest prompt has.
        ends: where the prompts end; what comes next stands there.
        short_start: where the short prompts begin.
    """

    tokens: Sequence[int]
    ends: tuple[int, ...]
    short_start: int


def is_measured(limits: Limits) -> bool:
    """Whether prompts may be so long that the held-out texts say nothing of their end."""
    return limits.max_input_len > LONG_PROMPT_TOKENS


def long_prompt_of(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], limits: Limits) -> LongPrompt | None:
    """Return the text that fills the longest prompt; none where the held-out texts are as long.

    Raises:
        StageError: there is no text to fill it with.
    """
    if not is_measured(limits):
        return None
    pieces = [list(tokenizer(text)["input_ids"]) for text in texts]
    if not any(pieces):
        raise StageError("validate", "expected held-out text, found none")
    longest = min(limits.max_input_len, limits.max_model_len - 1)
    tokens: list[int] = []
    for piece in cycle(pieces):
        tokens += piece
        if len(tokens) > longest:
            break
    ends = tuple(range(longest - STEP * (PROBES - 1), longest + 1, STEP))
    return LongPrompt(tokens[: longest + 1], ends, ends[0] - SHORT_TOKENS)


async def long_prompt_ratio(engine: Engine, prompt: LongPrompt) -> float:
    """Return how often the next token is right at the end of a full prompt, over how often with a short one.

    One is added to either, so that a model that is right nowhere gives 1, and no count divides by zero.

    Raises:
        StageError: the engine does not tell which token it says.
    """
    full = await _right(engine, prompt, 0)
    short = await _right(engine, prompt, prompt.short_start)
    return (full + 1) / (short + 1)


async def _right(engine: Engine, prompt: LongPrompt, start: int) -> int:
    """Count the places where the engine says the token that stands there, of a text that begins at `start`."""
    semaphore = asyncio.Semaphore(AT_ONCE)

    async def is_right(end: int) -> bool:
        async with semaphore:
            return await _next_token(engine, prompt.tokens[start:end]) == prompt.tokens[end]

    # The first alone: the others go on behind it, in the prefix cache.
    first, *others = prompt.ends
    return sum([await is_right(first), *await asyncio.gather(*map(is_right, others))])


async def _next_token(engine: Engine, tokens: Sequence[int]) -> int:
    said: list[int] = []

    def on_delta(delta: Delta) -> None:
        said.extend(delta.token_ids)

    await engine.generate(tokens, greedy(1, ignore_eos=True), on_delta)
    if not said:
        raise StageError("validate", "expected the engine to tell its tokens, found none")
    return said[0]
