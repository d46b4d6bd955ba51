"""What an engine says when it is full, held against what the plain engine says.

Graphs, kernels and caches that are wrong are wrong where a batch is large and mixed: a row is read from another, a
block of the KV cache is overwritten. Replies are then no longer what the model would say. So prompts of several lengths
are answered greedily, as many at once as are served, with replies of several lengths, so that prompts and replies share
batches. Then the same model on an engine without graphs says how probable each token of these replies is, and how
probable those of its own. A sound engine's replies are as probable, though not the same: where two tokens are almost
equal, rounding decides. A broken one's are not.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import fmean

from pipeline.lanes.gate_specs import MOST_MEAN_LOSS, MOST_WORST_LOSS
from pipeline.stages.stage import StageError
from pipeline.validate.speed import greedy
from runtime.engines import Delta, Engine

Tokens = Sequence[int]

# Lengths of prompts and of replies, in tokens; the numbers of each have no common divisor, so that all pairs occur.
PROMPT_LENGTHS = (24, 400, 90, 210, 48)
REPLY_LENGTHS = (40, 96, 16, 64)
# Replies for each one that runs at once: as some end, others begin beside those that go on.
ROUNDS = 2
MOST_PROMPTS = 512
# A fault may spoil a stretch of a reply alone: a reply counts as its least probable stretch of so many tokens. A reply
# that is shorter counts as if it had so many, the others certain: one token that is a toss-up is no fault.
STRETCH = 16
SCORED_AT_ONCE = 8
# A token that the plain engine holds for impossible has no finite logarithm; it counts as this.
IMPOSSIBLE = -100.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt, and how long its reply may be."""

    prompt: tuple[int, ...]
    reply_tokens: int


@dataclass(frozen=True, slots=True)
class TextScore:
    """How probable replies are.

    Attributes:
        mean: mean logarithm of the probability of all their tokens.
        worst: that of the least probable reply, by its least probable stretch.
    """

    mean: float
    worst: float


@dataclass(frozen=True, slots=True)
class TextLoss:
    """By how much less probable replies are than others; 0 where they are as probable or more.

    Attributes:
        mean: in nats a token.
        worst: of the worst reply of each.
    """

    mean: float
    worst: float

    @property
    def passed(self) -> bool:
        """Whether it is within the bounds."""
        return self.mean <= MOST_MEAN_LOSS and self.worst <= MOST_WORST_LOSS

    def __str__(self) -> str:
        return (
            f"{self.mean:.3f} nats a token less probable (at most {MOST_MEAN_LOSS:g}), "
            f"the worst reply {self.worst:.2f} (at most {MOST_WORST_LOSS:g})"
        )


def asked_of(texts: Sequence[Tokens], streams: int, *, longest_prompt: int, longest_reply: int) -> list[Asked]:
    """Cut prompts of several lengths out of texts: for each stream some, no two that begin alike where that can be.

    Raises:
        StageError: there is no text.
    """
    flat = [token for text in texts for token in text]
    if not flat:
        raise StageError("validate", "expected held-out text, found none")
    count = max(1, min(ROUNDS * streams, MOST_PROMPTS))
    # No divisor of the text's length, so that beginnings come back late.
    step = max(1, len(flat) // count) | 1
    asked = []
    lengths = islice(zip(cycle(PROMPT_LENGTHS), cycle(REPLY_LENGTHS), strict=False), count)
    for number, (prompt_tokens, reply_tokens) in enumerate(lengths):
        length = max(1, min(prompt_tokens, longest_prompt))
        begin = number * step % len(flat)
        tokens = islice(cycle(flat), begin, begin + length)
        asked.append(Asked(tuple(tokens), max(1, min(reply_tokens, longest_reply))))
    return asked


async def replies_of(engine: Engine, asked: Sequence[Asked], streams: int) -> list[tuple[int, ...]]:
    """Have all prompts answered greedily, so many at once, and return the tokens of the replies, in the same order."""
    semaphore = asyncio.Semaphore(max(1, streams))

    async def reply(one: Asked) -> tuple[int, ...]:
        said: list[int] = []

        def on_delta(delta: Delta) -> None:
            said.extend(delta.token_ids)

        async with semaphore:
            await engine.generate(one.prompt, greedy(one.reply_tokens, ignore_eos=True), on_delta)
        return tuple(said)

    return list(await asyncio.gather(*map(reply, asked)))


async def score_of(engine: Engine, asked: Sequence[Asked], replies: Sequence[Tokens]) -> TextScore:
    """Have an engine say how probable replies are behind their prompts.

    Raises:
        StageError: a reply is missing or empty, or the engine tells what is no probability.
    """
    semaphore = asyncio.Semaphore(SCORED_AT_ONCE)

    async def score(one: Asked, reply: Tokens) -> list[float]:
        async with semaphore:
            scored = await engine.score([*one.prompt, *reply])
        return [token.logprob for token in scored[len(one.prompt) - 1 :]]

    if len(replies) != len(asked):
        raise StageError("validate", f"expected {len(asked)} replies, found {len(replies)}")
    if empty := sum(not reply for reply in replies):
        raise StageError("validate", f"expected replies under load, found {empty} of {len(replies)} without a token")
    found = await asyncio.gather(*(score(one, reply) for one, reply in zip(asked, replies, strict=True)))
    try:
        return text_score(found)
    except ValueError as error:
        raise StageError("validate", str(error), next_step="the model computes what is no number") from error


def text_score(replies: Sequence[Sequence[float]]) -> TextScore:
    """Return how probable replies are, from the logarithms of their tokens' probabilities.

    Raises:
        ValueError: there is no reply, an empty one, or one with what is no logarithm of a probability.
    """
    if not replies or not all(replies):
        raise ValueError("expected replies with tokens, found none")
    if any(math.isnan(value) or value > 1e-3 for reply in replies for value in reply):
        raise ValueError("expected logarithms of probabilities, found what cannot be one")
    bounded = [[max(value, IMPOSSIBLE) for value in reply] for reply in replies]
    return TextScore(fmean(value for reply in bounded for value in reply), min(map(worst_stretch, bounded)))


def worst_stretch(reply: Sequence[float]) -> float:
    """Return the mean of the least probable stretch of a reply.

    >>> worst_stretch([-2.0] * 16), worst_stretch([-1.6]), worst_stretch([0.0] * 100 + [-1.0] * 16)
    (-2.0, -0.1, -1.0)
    """
    last = max(1, len(reply) - STRETCH + 1)
    return min(sum(reply[begin : begin + STRETCH]) for begin in range(last)) / STRETCH


def loss_of(served: TextScore, plain: TextScore) -> TextLoss:
    """Return by how much less probable the served engine's replies are than the plain engine's own."""
    return TextLoss(max(0.0, plain.mean - served.mean), max(0.0, plain.worst - served.worst))
