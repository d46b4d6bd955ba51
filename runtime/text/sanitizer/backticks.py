"""Backticks: code, whose marks all stay."""

from __future__ import annotations

from runtime.text.sanitizer.reading import LONG, NEWLINE, UNDECIDED, Reading

# Longest name of a language behind a fence.
FENCE_LIMIT = 40


def backticks(reading: Reading, text: str, at: int) -> int:
    """Code begins or ends: the mark goes, with a language behind a fence; another number of them is content."""
    end = reading.run_end(text, at)
    if end == LONG and reading.code == 3:
        reading.code = 0
    if end < 0:
        return reading.no_end(end, text, at)
    count = min(end - at, 3)
    if reading.code:
        if count != reading.code:
            return reading.emit(text[at:end], at)
        reading.code = 0
        return end
    if count == 3 and reading.line_start:
        newline = NEWLINE.search(text, end)
        if newline is None and len(text) - end <= FENCE_LIMIT and not reading.final:
            return UNDECIDED
        line_end = newline.start() if newline else len(text)
        if line_end - end <= FENCE_LIMIT and "`" not in text[end:line_end]:
            end = line_end
    reading.code = count
    reading.line_start = False
    return end
