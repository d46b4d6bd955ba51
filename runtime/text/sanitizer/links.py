"""Brackets: links, of which the text stays, references, and brackets that nothing may be left in."""

from __future__ import annotations

import re

from runtime.text.sanitizer.markup import LINK, REFERENCE, UNENDED_LINK
from runtime.text.sanitizer.names import reads_as_reference
from runtime.text.sanitizer.reading import UNDECIDED, Reading

# Longest link that is waited for, in characters.
LINK_LIMIT = 400

_ADDRESS_END = re.compile(r"[\s)]")


def bracket(reading: Reading, text: str, at: int) -> int:
    """`[`, also behind `!`: a link, an image, a reference, or a bracket."""
    if reading.line_start and not reading.links and text[at] == "[":
        match = REFERENCE.match(text, at, at + LINK_LIMIT + 1, partial=True)
        if match is not None and match.end() - at <= LINK_LIMIT:
            if match.end() == len(text) and not reading.final:
                return UNDECIDED
            if not match.partial and reads_as_reference(match["address"]):
                return reading.drop(match.end())
    match = LINK.match(text, at, at + LINK_LIMIT + 1, partial=True)
    if match is None:
        return _no_link(reading, text, at)
    if match.partial:
        if match.end() - at <= LINK_LIMIT and not reading.final:
            return UNDECIDED
        unended = UNENDED_LINK.match(text, at, at + LINK_LIMIT + 1)
        if unended is None or not reads_as_reference(unended["address"]):
            return _no_link(reading, text, at)
        reading.links.append((unended.end("text"), unended.start("address"), True))
        return int(unended.start("text"))
    # `a[i][j]` is no link, nor is `[1][2]`.
    name, text_of = match["reference"], match["text"]
    pair = f"{text_of}{name}"
    indexed = reading.after_word() or (len(pair) == 2 and pair.isalpha())
    if name is not None and (indexed or not any(char.isalpha() for char in text_of)):
        return _no_link(reading, text, at)
    address = text[match.end("text") + 2 : match.end() - 1].strip()
    if name is None and text[at] == "[" and reading.after_word() and not reads_as_reference(address):
        return _no_link(reading, text, at)  # `i[0](x)`
    reading.links.append((match.end("text"), match.end(), False))
    return int(match.start("text"))


def link_address(reading: Reading, text: str, at: int) -> int:
    """The rest of an address that was too long to wait for."""
    ended = _ADDRESS_END.search(text, at)
    if ended is None:
        return len(text)
    reading.in_link_address = False
    return ended.end() if ended[0] == ")" else ended.start()


def _no_link(reading: Reading, text: str, at: int) -> int:
    return reading.open_bracket("[", at) if text[at] == "[" else reading.emit(text[at], at)


def opening(reading: Reading, text: str, at: int) -> int:
    """Any bracket but `[`, and quotes that open."""
    if text[at] == "“" and not reading.blank and not reading.removed and reading.last and not reading.open:
        return reading.emit(text[at], at)  # „so“
    return reading.open_bracket(text[at], at)


def closing_bracket(reading: Reading, text: str, at: int) -> int:
    """`]`: the end of a link's text, or a bracket."""
    if reading.links and at == reading.links[-1][0]:
        _, end, reading.in_link_address = reading.links.pop()
        return end
    return reading.emit("]", at)


def bang(reading: Reading, text: str, at: int) -> int:
    """`!`: an image before `[`; else content."""
    if not reading.after_blank():
        return reading.emit("!", at)
    following = text[at + 1 : at + 2]
    if not following and not reading.final:
        return UNDECIDED
    if following == "[":
        return bracket(reading, text, at)
    # `a != b` and `!done` are no ends of sentences.
    return reading.emit("!", at, keep_space=following == "=" or following.isalnum())
