"""Which measured options win: a pure function of the figures of every run.

A run's score is how long it took, over how long the plain options took: below 1 is better. For latency that is the mean
of what a listener waits for: the first token of one stream, that of many which begin together, and the next token. The
plain options are measured first and again last, so what their own runs differ by is the noise, the machine's drift
among it. A candidate wins clearly when the worst of its runs is better than the best of theirs, by more than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean, median
from typing import Literal

from runtime.artifact import TunedFigures

Goal = Literal["latency", "throughput"]

# Runs that are equal by chance are no proof that the machine is still.
LEAST_NOISE = 0.01
# Above this the machine was not still enough to tell anything. First tokens of the plain options differ by 10 to 15 %
# where a build is not alone on its host; what is better than that in every run is better all the same.
MOST_NOISE = 0.25
# By how much any other figure may be worse where the goal is better, beside what it differs by in equal runs, but no
# more of that than the leeway.
MOST_LOSS = 0.10
MOST_LEEWAY = 0.10
# What a latency is: the figures that count for it.
LATENCIES = ("itl_ms", "ttft_one_ms", "ttft_ms")
# Figures that are further apart than this are no measurement; their ratio ends here.
MOST_RATIO = 1e6


@dataclass(frozen=True, slots=True)
class Base:
    """The plain options' figures.

    Attributes:
        figures: the median run.
        noise: by how much runs differ in what is to become better.
        spreads: by how much they differ in each figure.
    """

    figures: TunedFigures
    noise: float
    spreads: Mapping[str, float] = field(default_factory=dict)

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
    told = [ratios(run, figures) for run in runs]
    spreads = {name: _spread([one[name] for one in told if name in one]) for name in ratios(figures, figures)}
    return Base(figures, _spread([score(goal, run, figures) for run in runs]), spreads)


def _spread(ratios_to_median: Sequence[float]) -> float:
    return max(max(ratios_to_median) - 1, 1 - min(ratios_to_median), LEAST_NOISE)


def median_of(runs: Sequence[TunedFigures]) -> TunedFigures:
    """Return the median of each figure; none for one that no run has."""
    told = {name: [getattr(run, name) for run in runs] for name in TunedFigures.model_fields}
    known = {name: [value for value in values if value is not None] for name, values in told.items()}
    return TunedFigures(**{name: median(values) for name, values in known.items() if values})


def ratios(run: TunedFigures, base: TunedFigures) -> dict[str, float]:
    """Return how long a run took over how long the plain options took, by each figure that both have.

    >>> base = TunedFigures(itl_ms=4, ttft_ms=50, tokens_per_s=1000, ttft_one_ms=20)
    >>> ratios(TunedFigures(itl_ms=4, ttft_ms=25, tokens_per_s=2000), base)
    {'itl_ms': 1.0, 'ttft_ms': 0.5, 'tokens_per_s': 0.5}
    """
    found = {}
    for name in TunedFigures.model_fields:
        mine, theirs = getattr(run, name), getattr(base, name)
        if mine is not None and theirs is not None:
            ratio = theirs / mine if name == "tokens_per_s" else mine / theirs
            found[name] = min(max(ratio, 1 / MOST_RATIO), MOST_RATIO)
    return found


def score(goal: Goal, run: TunedFigures, base: TunedFigures) -> float:
    """Return how long a run took, over how long the plain options took.

    >>> base = TunedFigures(itl_ms=4, ttft_ms=50, tokens_per_s=1000)
    >>> score("throughput", TunedFigures(itl_ms=9, ttft_ms=99, tokens_per_s=2000), base)
    0.5
    """
    told = ratios(run, base)
    if goal == "throughput":
        return told["tokens_per_s"]
    return geometric_mean([told[name] for name in LATENCIES if name in told])


def lost(run: TunedFigures, base: Base) -> tuple[str, float, bool]:
    """Return the figure that is worst beside the plain options', by which part, and whether that is too much.

    A figure that is not the same twice may be worse by that too, to a bound: beyond it nothing would be told.
    """
    told = ratios(run, base.figures)
    beyond = {
        name: ratio - 1 - MOST_LOSS - min(base.spreads.get(name, base.noise), MOST_LEEWAY)
        for name, ratio in told.items()
    }
    name = max(beyond, key=lambda name: beyond[name])
    return name, told[name] - 1, beyond[name] > 0


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
    name, loss, too_much = lost(median_of(runs), base)
    if scores[-1] < 1 - base.noise:
        if too_much:
            return Verdict(False, middle, "no clear win", f"{told}, but {name} is {loss:.0%} worse")
        return Verdict(True, middle, "better", told)
    if middle > 1 + base.noise:
        return Verdict(False, middle, "slower", told)
    return Verdict(False, middle, "no clear win", f"{told}; a win needs every run below {1 - base.noise:.3f}")
