"""Tries the table of candidates, takes the best that wins clearly, and proves it before it is baked.

How an engine is measured and how replies are scored is handed in, so that this is a matter of figures alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.problem import printable
from pipeline.progress import Progress
from pipeline.tuning.budget import Budget
from pipeline.tuning.candidates import Candidate, merged
from pipeline.tuning.choosing import Base, Goal, Verdict, base_of, verdict
from pipeline.validate.text_under_load import TextLoss
from runtime.artifact import EngineChoices, TriedOptions, TunedFigures, TunedOptions, TuningKey

PLAIN = EngineChoices()
BASE, BASE_AGAIN, TOGETHER = "base", "base again", "all that won, together"
REASON_CHARACTERS = 300
# What is no figure of any engine.
LEAST_FIGURE, MOST_FIGURE = 1e-4, 1e9


class TrialError(Exception):
    """A candidate's engine did not start, died, hung or said nothing; the message is one line."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one process measured.

    Attributes:
        runs: every repeat.
        replies: tokens of its replies under load.
        kernels: of products and attention, as the engine says that it uses them.
    """

    runs: tuple[TunedFigures, ...]
    replies: tuple[tuple[int, ...], ...]
    kernels: tuple[str, ...] = ()


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
    budget: Budget | None = None,
) -> TunedOptions:
    """Try every candidate, and return the best that wins clearly and says what the plain engine says.

    A candidate that fails or hangs costs its own figures and nothing else, whatever it raises. When the budget is over,
    what was measured until then decides.

    Args:
        budget: time for all of it; none: as long as it takes.

    Raises:
        TrialError: the plain options themselves could not be measured at first, so that there is nothing to compare.
    """
    budget = budget or Budget()
    trials = _Trials(trial, budget, progress)
    progress.step(f"tuning: measuring the plain options (for all: {budget.text})")
    first = trials.run(PLAIN)
    base = base_of(goal, first.runs)
    log, tried = trials.log, trials.tried
    log[BASE] = _base_entry(BASE, first)
    for candidate in table:
        trials.attempt(candidate)
    # Together only where each wins by itself; what the first runs differ by will do to choose what to try.
    likely = _best_first(goal, tried, base)
    together = merged([choices for _, choices in likely])
    if len(likely) > 1 and together not in [choices for _, choices in likely]:
        trials.attempt(Candidate(TOGETHER, together))
    budget.close()
    progress.step("tuning: measuring the plain options again")
    try:
        again = trials.run(PLAIN)
        base = base_of(goal, (*first.runs, *again.runs))
        log[BASE_AGAIN] = _base_entry(BASE_AGAIN, again)
    except Exception as error:  # noqa: BLE001 - whatever it is
        # Nothing says how far the machine drifted: nothing wins.
        log[BASE_AGAIN] = TriedOptions(name=BASE_AGAIN, outcome="failed", reason=told(error))
        base = Base(base.figures, 1.0)
    verdicts: dict[str, Verdict] = {}
    for one in tried:
        found = verdicts[one.candidate.name] = verdict(goal, one.measured.runs, base)
        log[one.candidate.name] = _entry(one, found.outcome, found.reason)
    winner = _proven(trials, verdicts, first, judge)
    return TunedOptions(goal=goal, key=key, choices=winner, noise=base.noise, candidates=tuple(log.values()))


def _best_first(goal: Goal, tried: Sequence[_Tried], base: Base) -> list[tuple[float, EngineChoices]]:
    found = [(verdict(goal, one.measured.runs, base), one.candidate.choices) for one in tried]
    return sorted(((one.score, choices) for one, choices in found if one.wins), key=lambda pair: pair[0])


class _Trials:
    """The trials of one tuning, and what became of each."""

    def __init__(self, trial: Trial, budget: Budget, progress: Progress) -> None:
        self._trial, self.budget, self.progress = trial, budget, progress
        self.log: dict[str, TriedOptions] = {}
        self.tried: list[_Tried] = []

    def run(self, choices: EngineChoices) -> Measured:
        """Measure options, and remember how long that takes.

        Raises:
            TrialError: nothing was measured, or what no engine reaches.
        """
        begun = self.budget.now()
        measured = self._trial(choices)
        if not measured.runs:
            raise TrialError("nothing was measured" if choices != PLAIN else "the plain options were not measured")
        told = [value for run in measured.runs for value in run.model_dump().values() if value is not None]
        if wrong := [value for value in told if not LEAST_FIGURE <= value <= MOST_FIGURE]:
            raise TrialError(f"expected figures of an engine, found {wrong[0]:g}")
        self.budget.took(self.budget.now() - begun)
        return measured

    def attempt(self, candidate: Candidate) -> None:
        """Measure one candidate, unless there is a reason not to."""
        reason = candidate.not_tried
        if not reason and not self.budget.has_time():
            reason = f"the time was over ({self.budget.text} for all)"
        if reason:
            self._remember(candidate, "not tried", reason)
            return
        self.progress.step(f"tuning: {candidate.name} ({candidate.choices.text})")
        try:
            one = _Tried(candidate, self.run(candidate.choices))
            # Its place in the order; the verdict comes when the plain options were measured again.
            self.log[candidate.name] = _entry(one, "no clear win", "")
        except Exception as error:  # noqa: BLE001 - it loses this candidate alone, whatever it is
            self.progress.step(f"tuning: {candidate.name} failed: {told(error)}")
            self._remember(candidate, "failed", told(error))
            return
        self.tried.append(one)

    def _remember(self, candidate: Candidate, outcome: str, reason: str) -> None:
        self.log[candidate.name] = TriedOptions.model_validate(
            {"name": candidate.name, "options": candidate.choices, "outcome": outcome, "reason": reason}
        )


def told(error: Exception) -> str:
    """Return an error as one line: its message, with its kind where it is none of ours."""
    text = str(error) if isinstance(error, TrialError) else f"{type(error).__name__}: {error}"
    return printable(text, REASON_CHARACTERS)


def _proven(trials: _Trials, verdicts: dict[str, Verdict], plain: Measured, judge: Judge) -> EngineChoices:
    """Return the best of those that won whose text is the plain engine's; the plain options where there is none."""
    log, won = trials.log, [one for one in trials.tried if verdicts[one.candidate.name].wins]
    for number, one in enumerate(sorted(won, key=lambda one: verdicts[one.candidate.name].score)):
        name, why = one.candidate.name, verdicts[one.candidate.name].reason
        if number and trials.budget.left <= 0:
            log[name] = _entry(one, "better", f"{why}, but the time was over before its replies were read")
            continue
        trials.budget.close()
        trials.progress.step(f"tuning: {name} wins ({why}); reading what it said under load")
        try:
            loss = judge(one.measured.replies, plain.replies)
            passed = loss.passed
        except Exception as error:  # noqa: BLE001 - it loses this candidate alone, whatever it is
            log[name] = _entry(one, "text", f"{why}, but its replies could not be scored: {told(error)}")
            continue
        if not passed:
            log[name] = _entry(one, "text", f"{why}, but its replies are {loss}")
            continue
        log[name] = _entry(one, "won", f"{why}; replies under load {loss}")
        return one.candidate.choices
    return PLAIN


def _base_entry(name: str, measured: Measured) -> TriedOptions:
    return TriedOptions(name=name, outcome="base", runs=measured.runs, kernels=measured.kernels)


def _entry(one: _Tried, outcome: str, reason: str) -> TriedOptions:
    return TriedOptions.model_validate(
        {
            "name": one.candidate.name,
            "options": one.candidate.choices,
            "outcome": outcome,
            "reason": reason,
            "runs": one.measured.runs,
            "kernels": one.measured.kernels,
        }
    )
