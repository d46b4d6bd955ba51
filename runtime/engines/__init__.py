"""Engines behind one small interface.

An `Engine` turns prompt token ids into a stream of `Delta`s. The pipeline validates with the same classes that serve.
Nothing outside this package imports vLLM or TensorRT-LLM, and those imports happen inside `start`, so that importing
`runtime` stays cheap.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol


class EngineDeadError(Exception):
    """The engine process or its worker has died; nothing can be generated any more."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, in the protocol's terms. `top_k` 0 means all tokens; each engine translates.

    `max_tokens` bounds the reply. `seed` makes one request repeatable. `ignore_eos` is for benchmarks alone.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 30
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 150
    seed: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """What one engine step added to a reply.

    Attributes:
        text: new text, perhaps empty while a character is incomplete.
        tokens: number of new tokens.
        finish_reason: `stop` or `length` on the last delta, none before.
        cached_tokens: prompt tokens that came out of the prefix cache; known from the first delta on.
    """

    text: str
    tokens: int
    finish_reason: str | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenScore:
    """The model's view of one token of a given text: its log-probability, and the id it would have chosen itself."""

    logprob: float
    top_token: int


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine's own scheduler holds right now.

    Attributes:
        running: requests in the batch.
        waiting: requests queued for it.
        cache_usage: part of the KV cache in use, 0 to 1.
    """

    running: int
    waiting: int
    cache_usage: float


class Engine(Protocol):
    """One chat model, loaded."""

    async def start(self) -> None:
        """Load the model; return when it answers. Raises what the engine raises."""

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Stream a reply to prompt token ids. Closing the iterator, however that happens, aborts the request in the
        engine. Raises EngineDeadError when the engine is gone."""

    async def warm(self, prompt: Sequence[int]) -> int:
        """Prefill the prompt into the prefix cache; return how many of its tokens were cached already."""

    async def score(self, tokens: Sequence[int]) -> list[TokenScore]:
        """Score each token after the first, given those before it; `len(tokens) - 1` entries."""

    async def load(self) -> Load:
        """The scheduler's own figures, not a counter of ours."""

    async def reset_caches(self) -> bool:
        """Drop the prefix cache; false when the engine refused because something runs."""

    async def health(self) -> None:
        """Raise EngineDeadError when the engine cannot answer any more."""

    async def shutdown(self) -> None:
        """Stop the engine and its processes; safe to call twice."""
