"""Load on a server: which turns are begun when, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from .statistics import percentile
from .turn import TurnRecord

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Ask:
    """What one turn says.

    Attributes:
        utterance: the user's words.
        max_tokens: bounds the reply; none leaves it to the server.
    """

    utterance: str
    max_tokens: int | None = None


def read_asks(path: Path) -> list[Ask]:
    """Read turns from JSON lines: `utterance`, or `input_words` to make one of so many words; and `output_tokens`.

    Raises:
        ValueError: a line is none of that; the message says which, and what was expected.
    """
    asks = []
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except ValueError:
            raise ValueError(f"{where}: expected a JSON object, found {line[:60]!r}") from None
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected a JSON object, found {line[:60]!r}")
        unknown = entry.keys() - {"utterance", "input_words", "output_tokens"}
        if unknown:
            raise ValueError(
                f"{where}: expected utterance, input_words, output_tokens; found {', '.join(sorted(unknown))}"
            )
        utterance, words = entry.get("utterance"), entry.get("input_words")
        if utterance is None and _is_count(words):
            utterance = " ".join(islice(cycle(("and", "then", "we", "went", "on")), words))
        if not isinstance(utterance, str) or not utterance:
            raise ValueError(f"{where}: expected `utterance`, a text, or `input_words`, a whole number from 1 on")
        tokens = entry.get("output_tokens")
        if tokens is not None and not _is_count(tokens):
            raise ValueError(f"{where}: output_tokens: expected a whole number from 1 on, found {tokens!r}")
        asks.append(Ask(utterance, tokens))
    if not asks:
        raise ValueError(f"{path}: expected a JSON object a line, found none")
    return asks


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class Bounds:
    """What a listener wants, in seconds; none leaves a time out.

    Attributes:
        ttft: to the first token.
        gap: between tokens, on average over a turn.
        total: to the end.
    """

    ttft: float | None = None
    gap: float | None = None
    total: float | None = None

    def __bool__(self) -> bool:
        return any(bound is not None for bound in (self.ttft, self.gap, self.total))

    def met_by(self, turn: TurnRecord) -> bool:
        """Tell whether a turn was good enough. One without a first token was not."""
        if turn.ttft is None or turn.total is None:
            return False
        gap = sum(turn.gaps) / len(turn.gaps) if turn.gaps else 0.0
        pairs = ((self.ttft, turn.ttft), (self.gap, gap), (self.total, turn.total))
        return all(bound is None or value <= bound for bound, value in pairs)


@dataclass(frozen=True)
class Outcome:
    """One turn of a run.

    Attributes:
        tag: which of a connection's turns it was.
        turn: what came; none where nothing did.
        problem: what went wrong; none where nothing did.
    """

    tag: str
    turn: TurnRecord | None
    problem: str | None


def good_turns(outcomes: Sequence[Outcome]) -> list[TurnRecord]:
    """The turns that ended as turns should."""
    return [one.turn for one in outcomes if one.turn is not None and one.problem is None]


def figures(outcomes: Sequence[Outcome], elapsed: float, bounds: Bounds) -> dict[str, object]:
    """The figures of one run, in seconds, and tokens and turns per second."""
    turns = good_turns(outcomes)
    series = {
        "ttfb": [turn.ttfb for turn in turns if turn.ttfb is not None],
        "ttft": [turn.ttft for turn in turns if turn.ttft is not None],
        "inter_token": [gap for turn in turns for gap in turn.gaps],
        "total": [turn.total for turn in turns if turn.total is not None],
    }
    found: dict[str, object] = {
        name: {f"p{p}": percentile(sorted(values), p) for p in PERCENTILES} for name, values in series.items() if values
    }
    tokens = sum(turn.tokens for turn in turns)
    found.update(
        turns=len(turns),
        errors=sum(one.problem is not None for one in outcomes),
        tokens=tokens,
        tokens_per_s=tokens / elapsed,
        seconds=elapsed,
    )
    if bounds:
        met = sum(map(bounds.met_by, turns))
        # Of all turns: one that failed was no good one either.
        found["goodput"] = {"share": met / max(1, len(outcomes)), "turns_per_s": met / elapsed}
    return found


def arrivals(count: int, rate: float | None) -> Iterator[float]:
    """When each turn begins, in seconds: all at once, or so many a second at even distances."""
    yield from (number / rate if rate else 0.0 for number in range(count))
