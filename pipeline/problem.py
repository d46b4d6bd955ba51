"""Problems: what is wrong with a request, one line each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# What would break a line, move a terminal's cursor or turn the direction of its text, and what is half a character:
# Python's way to hold a file's name that is not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# A name may have thousands of characters; a line that quotes all of them tells nothing.
LONGEST_FOUND = 300


def printable(text: str, longest: int | None = None) -> str:
    """Return a text as one line that a terminal shows as it is, its middle cut out where it is too long.

    >>> printable("two\\nlines")
    'two\\\\nlines'
    """
    line = _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    if longest is None or len(line) <= longest:
        return line
    head = longest * 2 // 3
    return f"{line[:head]}…{line[len(line) - (longest - head - 1) :]}"


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
        found = printable(self.found, LONGEST_FOUND)
        return f"{printable(self.where)}: expected {printable(self.expected)}, found {found}{printable(remedy)}"


class WrongRequestError(Exception):
    """A request that cannot be carried out, with every problem that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
