"""Finding and breaking up words of a large set in text, at a cost that is linear in the text, whatever the set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from runtime.host.texts.words import any_of, cases, folded

# What ends a line for some reader, a model among them, and what shows as nothing on one.
_BREAKS = r"\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"
_BLANKS = rf"(?:[^\S{_BREAKS}]|[\u200b\u2060\ufeff])*"


class Breaker:
    """Breaks marks up with a space behind their first character. The time is linear in the text, whatever the marks.

    They are marks in any case: a model takes `<|System|>` for what it knows. One that is a word (`USER:`) is so in
    another case where a word begins, lest `superuser:` lose its shape.

    Args:
        anywhere: marks wherever they stand. Those of one character cannot be broken up.
        lines: words that are marks where they fill a line.
    """

    def __init__(self, anywhere: Iterable[str], lines: Iterable[str] = ()) -> None:
        # A space at either end would be none of the mark: a wider gap does not break it up.
        words = [word for word in map(str.strip, anywhere) if len(word) > 1]
        fillers = [word for word in map(str.strip, lines) if len(word) > 1]
        # Only the first character is consumed: a mark that begins inside another one is found as well.
        branches = [f"{re.escape(first)}(?={any_of(rest)})" for first, rest in _by_first(words)]
        for first, rest in _by_first(map(folded, words)):
            begins = r"(?<!\w.)" if first.isalnum() else ""
            behind = any_of(rest, any_case=True)
            branches += [f"{re.escape(char)}{begins}(?={behind})" for char in cases(first)]
        self._begin = re.compile("|".join(branches) if words else r"(?!)")
        filler = any_of(fillers, any_case=True)
        line = rf"{_BLANKS}(?={filler}{_BLANKS}(?:[{_BREAKS}]|\Z))."
        # The first line, and any other by what ends the line before: that is found at once, a line's beginning is not.
        self._first_line = re.compile(line if fillers else r"(?!)")
        self._later_line = re.compile(rf"[{_BREAKS}]{line}" if fillers else r"(?!)")

    def holds(self, text: str) -> bool:
        """Whether there is a mark in the text."""
        patterns = (self._begin.search, self._first_line.match, self._later_line.search)
        return any(find(text) is not None for find in patterns)

    def count(self, text: str) -> int:
        """How many marks are in the text."""
        first = self._first_line.match(text) is not None
        return first + sum(1 for find in (self._begin, self._later_line) for _ in find.finditer(text))

    def broken(self, text: str, gap: str = " ") -> str:
        """The text with every mark in it broken up, by a gap that is none of any mark's letters."""
        while True:
            # Again, because some marks have spaces in them. Each round widens the gaps, so that there is a last one.
            # Nearly all texts hold none, and searching costs less than replacing nothing.
            broken = text
            if self._begin.search(broken) is not None:
                broken = self._begin.sub(rf"\g<0>{gap}", broken)
            if (first := self._first_line.match(broken)) is not None:
                broken = f"{first[0]}{gap}{broken[first.end() :]}"
            if self._later_line.search(broken) is not None:
                broken = self._later_line.sub(rf"\g<0>{gap}", broken)
            if broken == text:
                return text
            text = broken


def _by_first(words: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """First characters, each with what stands behind it in the words that begin with it."""
    for first, group in groupby(sorted(words), key=lambda word: word[0]):
        yield first, [word[1:] for word in group]
