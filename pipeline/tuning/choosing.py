"""Which measured options win: a pure function of the figures of every run.

A run's score is how long it took, over how long the plain options took: below 1 is better. The plain options are
measured first and again last, so what their own runs differ by is the noise, the machine's drift among it. A candidate
wins clearly when the worst of its runs is better than the best of theirs, by more than that noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from runtime.artifact import TunedFigures

Goal = Literal["latency", "throughput"]

# Runs that are equal by chance are no proof that the machine is still.
LEAST_NOISE = 0.01
# Above this the machine was not still enough to tell anything.
MOST_NOISE = 0.10
# By how much any other figure may be worse where the goal is better.
MOST_LOSS = 0.10


@dataclass(frozen=True, slots=True)
class Base:
    """The plain options' figures: the median run, and by how much runs differ."""

    figures: TunedFigures
    noise: float

    @property
    def still(self) -> bool:
        """Whether the machine was still enough to compare anything."""
        return self.noise <= MOST_NOISE


def base_of(goal: Goal, runs: Sequence[TunedFigures]) -> Base:
    """Return what candidates are held against.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("expected runs of the plain options, found none")
    figures = median_of(runs)
    scores = [score(goal, run, figures) for run in runs]
    noise = max(max(scores) - 1, 1 - min(scores), LEAST_NOISE)
    return Base(figures, noise)


def median_of(runs: Sequence[TunedFigures]) -> TunedFigures:
    """Return the median of each figure."""
    return TunedFigures(**{name: median(getattr(run, name) for run in runs) for name in TunedFigures.model_fields})


def score(goal: Goal, run: TunedFigures, base: TunedFigures) -> float:
    """Return how long a run took, over how long the plain options took.

    >>> base = TunedFigures(itl_ms=4, ttft_ms=50, tokens_per_s=1000)
    >>> score("throughput", TunedFigures(itl_ms=9, ttft_ms=99, tokens_per_s=2000), base)
    0.5
    """
    if goal == "throughput":
        return base.tokens_per_s / run.tokens_per_s
    return math.sqrt((run.itl_ms / base.itl_ms) * (run.ttft_ms / base.ttft_ms))


def lost(run: TunedFigures, base: TunedFigures) -> tuple[str, float]:
    """Return the figure that is worst beside the plain options', and by which part it is worse."""
    ratios = {
        "itl_ms": run.itl_ms / base.itl_ms,
        "ttft_ms": run.ttft_ms / base.ttft_ms,
        "tokens_per_s": base.tokens_per_s / run.tokens_per_s,
    }
    name = max(ratios, key=lambda name: ratios[name])
    return name, ratios[name] - 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the figures say of a candidate.

    Attributes:
        wins: whether it wins clearly.
        score: of its median run.
        outcome: `better`, `slower` or `no clear win`.
        reason: for a person.
    """

    wins: bool
    score: float
    outcome: Literal["better", "slower", "no clear win"]
    reason: str


def verdict(goal: Goal, runs: Sequence[TunedFigures], base: Base) -> Verdict:
    """Return what the figures say of a candidate.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("expected runs of a candidate, found none")
    scores = sorted(score(goal, run, base.figures) for run in runs)
    middle = median(scores)
    told = f"{middle:.3f} × the plain options"
    if not base.still:
        return Verdict(False, middle, "no clear win", f"{told}, which themselves differ by {base.noise:.1%}")
    name, loss = lost(median_of(runs), base.figures)
    if scores[-1] < 1 - base.noise:
        if loss > MOST_LOSS + base.noise:
            return Verdict(False, middle, "no clear win", f"{told}, but {name} is {loss:.0%} worse")
        return Verdict(True, middle, "better", told)
    if middle > 1 + base.noise:
        return Verdict(False, middle, "slower", told)
    return Verdict(False, middle, "no clear win", f"{told}; a win needs every run below {1 - base.noise:.3f}")
