"""Marks of a line: bullets, headings, quotes, drawn lines, the rows of a table."""

from __future__ import annotations

from runtime.text.sanitizer.markup import DELIMITER
from runtime.text.sanitizer.reading import BLANK_LIMIT, KEYCAP, NEWLINE, UNDECIDED, Reading

# Longest cell of a delimiter row that is waited for, in characters.
CELL_LIMIT = 200


def line_mark(reading: Reading, text: str, at: int, end: int) -> int:
    """A bullet or a drawn line at the start of a line; `at` when it is neither."""
    following = text[end : end + 1]
    if end - at == 1 and text[at] != "=" and (not following or following.isspace()):
        reading.removed = True
        return end
    if end - at < 3:
        return at
    rest = end
    while rest < len(text) and text[rest] in " \t" and rest - end < BLANK_LIMIT:
        rest += 1
    if rest == len(text):
        return reading.drop(rest) if reading.final else UNDECIDED
    return reading.drop(rest) if NEWLINE.match(text, rest) else at


def line_signs(reading: Reading, text: str, at: int) -> int:
    """`-`, `+`, `•` and `=`: signs that are marks at the start of a line alone."""
    if not reading.line_start and not (reading.row and text[at] == "-"):
        return reading.emit(text[at], at)
    end = reading.run_end(text, at)
    if end < 0:
        return reading.no_end(end, text, at)
    if not reading.line_start:
        return reading.emit(text[at:end], at)
    after = line_mark(reading, text, at, end)
    return reading.emit(text[at:end], at) if after == at else after


def hashes(reading: Reading, text: str, at: int) -> int:
    """A heading at the start of a line, or a keycap; content elsewhere."""
    end = reading.run_end(text, at)
    if end < 0:
        return reading.no_end(end, text, at)
    following = text[end : end + 1]
    heading = reading.line_start and end - at <= 6 and (not following or following.isspace())
    return reading.drop(end) if heading or following in KEYCAP else reading.emit(text[at:end], at)


def greater(reading: Reading, text: str, at: int) -> int:
    """A quote at the start of a line; content elsewhere."""
    if not reading.line_start:
        return reading.emit(">", at)
    following = text[at + 1 : at + 2]
    if not following and not reading.final:
        return UNDECIDED
    return at + 1 if following in ("", ">") or following.isspace() else reading.emit(">", at)


def bar(reading: Reading, text: str, at: int) -> int:
    """The edge of a cell, in a line that begins with one; a cell of a delimiter row goes with it."""
    if not reading.line_start and not reading.row:
        return reading.emit("|", at)
    delimiter = DELIMITER.match(text, at, at + CELL_LIMIT + 1, partial=True)
    if delimiter is not None and delimiter.end() == len(text) <= at + CELL_LIMIT and not reading.final:
        return UNDECIDED  # it may go on
    reading.row = True
    reading.line_start = False
    reading.blank = True
    return at + 1 if delimiter is None or delimiter.partial else int(delimiter.end())
