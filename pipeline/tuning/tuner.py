"""Tries the table of candidates, takes the best that wins clearly, and proves it before it is baked.

How an engine is measured and how replies are scored is handed in, so that this is a matter of figures alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.progress import Progress
from pipeline.tuning.candidates import Candidate, merged
from pipeline.tuning.choosing import Base, Goal, Verdict, base_of, verdict
from pipeline.validate.text_under_load import TextLoss
from runtime.artifact import EngineChoices, TriedOptions, TunedFigures, TunedOptions, TuningKey

PLAIN = EngineChoices()
BASE, BASE_AGAIN, TOGETHER = "base", "base again", "all that won, together"


class TrialError(Exception):
    """A candidate's engine did not start, died, hung or said nothing; the message is one line."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one process measured.

    Attributes:
        runs: every repeat.
        replies: tokens of its replies under load.
    """

    runs: tuple[TunedFigures, ...]
    replies: tuple[tuple[int, ...], ...]


Replies = Sequence[Sequence[int]]
# Measures options in a process of their own. Raises TrialError.
Trial = Callable[[EngineChoices], Measured]
# Has the plain engine without graphs say by how much less probable the first replies are than the second. Raises
# TrialError.
Judge = Callable[[Replies, Replies], TextLoss]


@dataclass(frozen=True, slots=True)
class _Tried:
    candidate: Candidate
    measured: Measured


def tune(
    goal: Goal,
    key: TuningKey,
    table: Sequence[Candidate],
    *,
    trial: Trial,
    judge: Judge,
    progress: Progress,
) -> TunedOptions:
    """Try every candidate, and return the best that wins clearly and says what the plain engine says.

    A candidate that fails or hangs costs its own figures and nothing else.

    Raises:
        TrialError: the plain options themselves could not be measured at first, so that there is nothing to compare.
    """
    progress.step("tuning: measuring the plain options")
    first = trial(PLAIN)
    if not first.runs:
        raise TrialError("the plain options were not measured")
    log: dict[str, TriedOptions] = {BASE: TriedOptions(name=BASE, outcome="base", runs=first.runs)}
    tried: list[_Tried] = []
    for candidate in table:
        _try(candidate, trial, log, tried, progress)
    base = base_of(goal, first.runs)
    # Together only where each wins by itself; what the first runs differ by will do to choose what to try.
    likely = _best_first(goal, tried, base)
    together = merged([choices for _, choices in likely])
    if len(likely) > 1 and together not in [choices for _, choices in likely]:
        _try(Candidate(TOGETHER, together), trial, log, tried, progress)
    progress.step("tuning: measuring the plain options again")
    runs = first.runs
    try:
        again = trial(PLAIN)
        log[BASE_AGAIN] = TriedOptions(name=BASE_AGAIN, outcome="base", runs=again.runs)
        runs = (*first.runs, *again.runs)
        base = base_of(goal, runs)
    except TrialError as error:
        # Nothing says how far the machine drifted: nothing wins.
        log[BASE_AGAIN] = TriedOptions(name=BASE_AGAIN, outcome="failed", reason=str(error))
        base = Base(base.figures, 1.0)
    verdicts: dict[str, Verdict] = {}
    for one in tried:
        found = verdicts[one.candidate.name] = verdict(goal, one.measured.runs, base)
        log[one.candidate.name] = _entry(one, found.outcome, found.reason)
    winner = _proven(tried, verdicts, first, judge, log, progress)
    return TunedOptions(goal=goal, key=key, choices=winner, noise=base.noise, candidates=tuple(log.values()))


def _best_first(goal: Goal, tried: Sequence[_Tried], base: Base) -> list[tuple[float, EngineChoices]]:
    found = [(verdict(goal, one.measured.runs, base), one.candidate.choices) for one in tried]
    return sorted(((one.score, choices) for one, choices in found if one.wins), key=lambda pair: pair[0])


def _try(
    candidate: Candidate, trial: Trial, log: dict[str, TriedOptions], tried: list[_Tried], progress: Progress
) -> None:
    """Measure one candidate, and remember what became of it."""

    def remember(outcome: str, reason: str) -> None:
        log[candidate.name] = TriedOptions.model_validate(
            {"name": candidate.name, "options": candidate.choices, "outcome": outcome, "reason": reason}
        )

    if candidate.not_tried:
        remember("not tried", candidate.not_tried)
        return
    progress.step(f"tuning: {candidate.name} ({candidate.choices.text})")
    try:
        measured = trial(candidate.choices)
    except TrialError as error:
        progress.step(f"tuning: {candidate.name} failed: {error}")
        remember("failed", str(error))
        return
    if not measured.runs:
        remember("failed", "nothing was measured")
        return
    tried.append(_Tried(candidate, measured))
    # Its place in the order; the verdict comes when the plain options were measured again.
    log[candidate.name] = _entry(tried[-1], "no clear win", "")


def _proven(
    tried: Sequence[_Tried],
    verdicts: dict[str, Verdict],
    plain: Measured,
    judge: Judge,
    log: dict[str, TriedOptions],
    progress: Progress,
) -> EngineChoices:
    """Return the best of those that won whose text is the plain engine's; the plain options where there is none."""
    won = [one for one in tried if verdicts[one.candidate.name].wins]
    for one in sorted(won, key=lambda one: verdicts[one.candidate.name].score):
        name, told = one.candidate.name, verdicts[one.candidate.name].reason
        progress.step(f"tuning: {name} wins ({told}); reading what it said under load")
        try:
            loss = judge(one.measured.replies, plain.replies)
        except TrialError as error:
            log[name] = _entry(one, "text", f"{told}, but its replies could not be scored: {error}")
            continue
        if not loss.passed:
            log[name] = _entry(one, "text", f"{told}, but its replies are {loss}")
            continue
        log[name] = _entry(one, "won", f"{told}; replies under load {loss}")
        return one.candidate.choices
    return PLAIN


def _entry(one: _Tried, outcome: str, reason: str) -> TriedOptions:
    return TriedOptions.model_validate(
        {
            "name": one.candidate.name,
            "options": one.candidate.choices,
            "outcome": outcome,
            "reason": reason,
            "runs": one.measured.runs,
        }
    )
