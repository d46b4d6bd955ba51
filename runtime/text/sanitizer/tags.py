"""HTML and escapes: tags and comments go, entities and escaped marks become what they stand for."""

from __future__ import annotations

import html
from html.entities import html5

from runtime.text.sanitizer.markup import BLOCK_TAGS, ENTITY, TAG
from runtime.text.sanitizer.reading import UNDECIDED, Reading

# Longest tag that is waited for, in characters.
TAG_LIMIT = 400

_ESCAPED = frozenset("*_`~#[]|>")


def less(reading: Reading, text: str, at: int) -> int:
    """A tag, a comment, an address in brackets, or a comparison."""
    match = TAG.match(text, at, at + TAG_LIMIT + 1, partial=True)
    if match is None or match.end() - at > TAG_LIMIT or (match.partial and reading.final):
        return reading.emit("<", at)
    if match.partial:
        return UNDECIDED
    if match["address"]:
        reading.begun = True
        for char in match["address"]:
            reading.emit_run(char, at)
        return int(match.end())
    if match["other"] and reading.after_word() and text[at + 1] != "/":
        return reading.emit("<", at)
    if match["known"] and match["known"].lower() in BLOCK_TAGS:
        reading.blank = True
    return reading.drop(match.end())


def ampersand(reading: Reading, text: str, at: int) -> int:
    """An entity becomes its characters; anything else is content."""
    match = ENTITY.match(text, at, partial=True)
    if match is None or (match.partial and reading.final):
        return reading.emit("&", at)
    if match.partial:
        return UNDECIDED
    if match[0][1] != "#" and match[0][1:] not in html5:
        return reading.emit("&", at)
    for char in html.unescape(match[0]):
        if char.isspace():
            reading.blank = True
        else:
            reading.emit_run(char, at)
    return int(match.end())


def backslash(reading: Reading, text: str, at: int) -> int:
    """The backslash before a mark goes; the mark is content."""
    following = text[at + 1 : at + 2]
    if not following and not reading.final:
        return UNDECIDED
    if following in _ESCAPED:
        reading.emit(following, at)
        return at + 2
    return reading.emit("\\", at)
