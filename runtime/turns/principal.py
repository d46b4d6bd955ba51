"""Principals: whose sessions, prompts and turns they are. A principal holds one API key or several."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.wire.frames import Usage


@dataclass(eq=False, slots=True)
class Principal:
    """A holder of keys, the same object as long as the server knows it. What it has used is counted here.

    Attributes:
        name: for metrics and the log; says nothing of its keys.
        identity: the same on every server with the same keys, and no key; empty where nobody has told: then the name.
        cache_salt: keeps its prompts apart from others' in the engine's prefix cache; none shares one cache.
        turns: that ended.
        prompt_tokens: of all turns.
        cached_tokens: those of them that came out of the prefix cache.
        completion_tokens: of all turns.
        refused: connections and sessions that were over its quota.
    """

    name: str
    cache_salt: str | None = None
    identity: bytes = b""
    turns: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self.identity = self.identity or b"name:" + self.name.encode("utf-8", "surrogatepass")

    def count(self, usage: Usage) -> None:
        """Count a turn that ended."""
        self.turns += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.completion_tokens += usage.completion_tokens
