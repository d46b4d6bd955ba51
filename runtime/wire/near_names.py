"""Names that somebody may have meant: of a field or a variable that is known, given one that is not.

Whoever sends messages chooses the names, and each is looked at in the loop that serves all: so what cannot be alike is
left out by length and letters, and what is left is compared letter by letter, in a few microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

# How alike two names must be, 0 to 1: one wrong, missing or superfluous letter in seven.
LIKENESS = 0.85
LONGEST = 64


class _Known(NamedTuple):
    """A known name.

    Attributes:
        plain: its letters, all small.
        letters: which ones it has.
        name: as it is written.
    """

    plain: str
    letters: int
    name: str


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a name; none where none is much alike. Case and separators do not count.

    >>> near("user_uterance", ["user_utterance", "runtime_text"])
    'user_utterance'
    >>> near("sessionId", ["session_id"])
    'session_id'
    >>> near("color", ["user_utterance", "runtime_text"])
    """
    if not name or len(name) > LONGEST:
        return None
    plain = _plain(name)
    letters = _letters(plain)
    of_its_length = _of_length(frozenset(known), len(plain))
    may_be = [
        one
        for one in of_its_length
        if (one.letters ^ letters).bit_count() <= (1 - LIKENESS) * (len(one.plain) + len(plain))
    ]
    alike = [(ratio, one) for one in may_be if (ratio := _ratio(plain, one.plain)) >= LIKENESS]
    if alike:
        return max(alike)[1].name
    return next((one.name for one in may_be if len(one.plain) >= 4 and _swapped(plain, one.plain)), None)


@lru_cache(1024)
def _of_length(known: frozenset[str], length: int) -> tuple[_Known, ...]:
    """The known names that one of so many letters may be like. There are few sets of them, and few lengths."""
    names = [_Known(plain := _plain(name), _letters(plain), name) for name in sorted(known)]
    return tuple(one for one in names if 2 * min(len(one.plain), length) >= LIKENESS * (len(one.plain) + length))


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _letters(plain: str) -> int:
    """A bit for each letter that a name has; some share one."""
    found = 0
    for letter in plain:
        found |= 1 << (ord(letter) & 63)
    return found


def _ratio(one: str, other: str) -> float:
    """How much of two names are letters that both have in the same order, 0 to 1."""
    places: dict[str, int] = {}
    for index, letter in enumerate(one):
        places[letter] = places.get(letter, 0) | 1 << index
    rest = everything = (1 << len(one)) - 1  # bits of `one`; those that are gone are letters of the common sequence
    for letter in other:
        found = rest & places.get(letter, 0)
        rest = (rest + found | rest - found) & everything
    return 2 * (len(one) - rest.bit_count()) / (len(one) + len(other) or 1)


def _swapped(one: str, other: str) -> bool:
    """Whether two names differ in two neighbouring letters that changed places."""
    if len(one) != len(other):
        return False
    wrong = [index for index, letter in enumerate(one) if letter != other[index]]
    return (
        len(wrong) == 2
        and wrong[1] == wrong[0] + 1
        and (one[wrong[0]], one[wrong[1]])
        == (
            other[wrong[1]],
            other[wrong[0]],
        )
    )
