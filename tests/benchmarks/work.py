"""The work that every contender of a benchmark gets, and the figures that are taken from it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.client.statistics import percentile

SYLLABLES = ("ba", "lo", "mi", "ren", "ta", "vor", "sel", "ku", "den", "ost", "pri", "nal")
SAMPLING = {"temperature": 0.8, "top_p": 0.95, "top_k": 30}


@dataclass(frozen=True)
class Work:
    """One turn's texts: a system prompt of about `words` × 2.3 tokens, and a short utterance."""

    persona: str
    utterance: str


def work(seed: int, words: int, persona: int | None = None) -> Work:
    """Make a turn's texts, unique by seed and the same each time.

    `persona` chooses the system prompt; by default each seed has its own.

    Personas share no prefix beyond the template's own: their first words differ.
    """
    source = random.Random(seed if persona is None else persona)
    text = " ".join("".join(source.choices(SYLLABLES, k=2)) for _ in range(words))
    name = seed if persona is None else persona
    return Work(f"{name} {text}.", f"Tell me long story {seed} about the sea and do not stop.")


def turns(streams: int, rounds: int, first_seed: int, first_persona: int | None) -> list[list[tuple[int, int | None]]]:
    """Return seed and persona of each stream's turns: a persona for every stream or, with none, for every turn."""
    return [
        [
            (first_seed + stream * rounds + turn, None if first_persona is None else first_persona + stream)
            for turn in range(rounds)
        ]
        for stream in range(streams)
    ]


@dataclass(frozen=True)
class Sample:
    """The times and counts of one finished turn, in seconds on the machine's monotonic clock.

    Attributes:
        started: when its message was sent.
        first: when its first token came.
        ended: when it was over.
        tokens: how many it had.
        frames: pieces that the reply came in.
        server_ttft: the time to the first token as the server itself took it.
        stream: whose turn it was.
    """

    started: float
    first: float
    ended: float
    tokens: int
    frames: int = 0
    server_ttft: float = 0.0
    stream: int = 0

    @property
    def ttft(self) -> float:
        """The time to the first token, in seconds."""
        return self.first - self.started

    @property
    def itl(self) -> float:
        """The mean time between this turn's tokens, in seconds."""
        return (self.ended - self.first) / max(1, self.tokens - 1)

    def tokens_within(self, begin: float, end: float) -> float:
        """Return how many of the turn's tokens came in a span of time, as if they came evenly."""
        length = self.ended - self.first
        share = (
            max(0.0, min(self.ended, end) - max(self.first, begin)) / length
            if length
            else float(begin <= self.first < end)
        )
        return self.tokens * share


@dataclass(frozen=True)
class Figures:
    """The figures of one contender with one number of streams.

    Attributes:
        streams: how many ran at once.
        tokens_per_s: throughput of all streams together.
        ttft_p50: median time to the first token, in seconds.
        ttft_p95: its 95th percentile.
        itl_p50: median time between tokens, in seconds.
        turns: how many were measured.
        tokens: how many they had together.
    """

    streams: int
    tokens_per_s: float
    ttft_p50: float
    ttft_p95: float
    itl_p50: float
    turns: int
    tokens: int

    def line(self, name: str) -> str:
        """Word the figures in one line."""
        return (
            f"{name:28} {self.streams:5} streams  {self.tokens_per_s:10.1f} tok/s  "
            f"TTFT p50 {self.ttft_p50 * 1000:8.1f} ms  p95 {self.ttft_p95 * 1000:8.1f} ms  "
            f"ITL {self.itl_p50 * 1000:7.2f} ms  ({self.turns} turns, {self.tokens} tokens)"
        )


def figures(streams: int, samples: list[Sample], *, steady: bool = False) -> Figures:
    """Compute throughput from the first start to the last end, and percentiles over turns.

    With `steady` only of the time in which every stream speaks, and of the turns that began in it.
    """
    begin = min((sample.started for sample in samples), default=0.0)
    end = max((sample.ended for sample in samples), default=0.0)
    spoken = float(sum(sample.tokens for sample in samples))
    if steady:
        numbers = {sample.stream for sample in samples}
        begin = max(min(s.first for s in samples if s.stream == number) for number in numbers)
        end = min(max(s.ended for s in samples if s.stream == number) for number in numbers)
        if end <= begin:
            raise ValueError("expected a time in which every stream speaks, found none; give the streams more turns")
        spoken = sum(sample.tokens_within(begin, end) for sample in samples)
        samples = [sample for sample in samples if begin <= sample.started < end]
    if not samples:
        raise ValueError("expected finished turns, found none")
    ttft = sorted(sample.ttft for sample in samples)
    tokens = sum(sample.tokens for sample in samples)
    return Figures(
        streams=streams,
        tokens_per_s=spoken / (end - begin),
        ttft_p50=percentile(ttft, 50),
        ttft_p95=percentile(ttft, 95),
        itl_p50=percentile(sorted(sample.itl for sample in samples), 50),
        turns=len(samples),
        tokens=tokens,
    )
