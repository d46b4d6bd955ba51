"""Names that somebody may have meant: of a field or a variable that is known, given one that is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# How alike two names must be, 0 to 1: one wrong, missing or superfluous letter in seven.
LIKENESS = 0.85
LONGEST = 64


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
    names = {_plain(one): one for one in known}
    found = difflib.get_close_matches(plain, names, n=1, cutoff=LIKENESS)
    if not found:
        found = [one for one in names if len(one) >= 4 and _swapped(plain, one)]
    return names[found[0]] if found else None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


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
