"""Problems: what is wrong with a request, one line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why a request cannot be carried out.

    Attributes:
        where: the option, variable, file or device.
        expected: what would be right.
        found: what is there.
        next_step: what the user can do.
    """

    where: str
    expected: str
    found: str
    next_step: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.next_step}" if self.next_step else ""
        return f"{self.where}: expected {self.expected}, found {self.found}{remedy}"


class WrongRequestError(Exception):
    """A request that cannot be carried out, with every problem that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
