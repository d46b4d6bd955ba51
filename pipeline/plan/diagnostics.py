"""The decisions and problems that a plan collects while it is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.plan import PlanDecision
from pipeline.problem import Problem


@dataclass(slots=True)
class Diagnostics:
    """The decisions and problems of a plan, in the order in which they came up."""

    decisions: list[PlanDecision] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def decide(self, name: str, value: object, reason: str) -> None:
        """Add a choice, and why it was made."""
        self.decisions.append(PlanDecision(name, str(value), reason))

    def problem(self, where: str, expected: str, found: str, next_step: str = "") -> None:
        """Add a problem: what is wrong, and what to do."""
        self.problems.append(Problem(where, expected, found, next_step))

    def distinct_problems(self, earlier: Iterable[Problem]) -> tuple[Problem, ...]:
        """Return every problem once, those that were known before first.

        What was wrong with a value before is not told again of the default that took its place.
        """
        known = list(earlier)
        told = {problem.where for problem in known}
        return tuple(dict.fromkeys([*known, *(problem for problem in self.problems if problem.where not in told)]))
