"""Patterns for many words, at a cost in the text alone, whatever their number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

# Groups within groups; words that go on branching deeper are tried one after the other there, which costs time for
# each: a few hundred runs of one character are no matter, thousands would be.
DEEPEST = 50


def any_of(words: Iterable[str], *, any_case: bool = False) -> str:
    """A pattern for the longest of some words that stands at a place.

    Words that begin alike share their beginning, so that the time does not grow with their number: a plain alternation
    would try each of the thousands of reserved tokens that some vocabularies have, or of a server's keys.

    Args:
        any_case: words are found in any case, letter by letter.

    >>> any_of(["<a>", "<ab>", "[x]"])
    '(?:<a(?:>|b>)|\\\\[x\\\\])'
    >>> any_of([]), any_of(["<a", "<a>"], any_case=True)
    ('(?!)', '<[aA]>?')
    """
    distinct = sorted({folded(word) if any_case else word for word in words} - {""})
    return _branches(distinct, any_case=any_case, depth=0) if distinct else r"(?!)"


def folded(word: str) -> str:
    """A word in one case, letter by letter."""
    return "".join(cases(char)[0] for char in word)


def cases(char: str) -> list[str]:
    """A letter in each of its cases, or what has none as it is."""
    small, capital = char.lower(), char.upper()
    return [small, capital] if small != capital and len(small) == len(capital) == 1 else [char]


def _branches(words: Sequence[str], *, any_case: bool, depth: int) -> str:
    """What is left of words behind a beginning that they share, in order and each once."""
    ends = not words[0]  # the shortest comes first
    rest = words[1:] if ends else words
    if depth == DEEPEST:
        branches = [_literal(word, any_case=any_case) for word in sorted(rest, key=len, reverse=True)]
    else:
        branches = []
        for _, group in groupby(rest, key=lambda word: word[0]):
            alike = list(group)
            length = _alike(alike[0], alike[-1])  # of all, since they are in order
            behind = [word[length:] for word in alike]
            branch = _literal(alike[0][:length], any_case=any_case)
            if len(behind) > 1:
                branch += _branches(behind, any_case=any_case, depth=depth + 1)
            branches.append(branch)
    if not branches:
        return ""
    one = len(branches) == 1 and (not ends or (len(rest) == 1 and len(rest[0]) == 1))
    whole = branches[0] if one else f"(?:{'|'.join(branches)})"
    return f"{whole}?" if ends else whole


def _alike(one: str, other: str) -> int:
    """How many characters two words have alike at their beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _literal(text: str, *, any_case: bool) -> str:
    if not any_case:
        return re.escape(text)
    found = map(cases, text)
    return "".join(re.escape(one[0]) if len(one) == 1 else f"[{''.join(one)}]" for one in found)
