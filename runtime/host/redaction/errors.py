"""Errors as a log may show them: types and places, and texts that quote nobody."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from types import TracebackType

# A class whose errors quote nothing that a client sent sets this attribute to True; then their text is shown.
TELLABLE = "text_may_be_logged"
# These are about the machine, wherever they come from.
TELLABLE_NAMES = frozenset({"torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError", "torch.AcceleratorError"})

FRAMES = 40
CHAIN = 8

_TRACEBACK = "Traceback (most recent call last):"
_PLACE = re.compile(r'\s*File "[^"\n]{1,512}", line \d+(, in \S+)?')
_ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(?=:|$)")


def describe(error: BaseException) -> str:
    """An error in one line: its type, and its text where that quotes nobody."""
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    if getattr(kind, TELLABLE, False) or name in TELLABLE_NAMES:
        return f"{name}: {error}"
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return f"{name}: {os.strerror(error.errno)}"
    return name


def places(trace: TracebackType | None) -> Iterator[str]:
    """Where an error came through: files, lines and functions. No source, and no values."""
    frames = list(traceback.walk_tb(trace))
    for frame, line in frames[-FRAMES:]:
        yield f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}'


def explain(error: BaseException) -> str:
    """An error with what led to it, the innermost first, as Python tells it, without what it quotes."""
    parts: list[str] = []
    told: set[int] = set()
    waiting = [error]
    while waiting and len(told) < CHAIN:
        current = waiting.pop(0)
        if id(current) in told:
            continue
        told.add(id(current))
        parts.append("\n".join([_TRACEBACK, *places(current.__traceback__), describe(current)]))
        inner = getattr(current, "exceptions", ())  # of a group
        waiting += [one for one in inner if isinstance(one, BaseException)] if isinstance(inner, (tuple, list)) else []
        before = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
        if before is not None:
            waiting.append(before)
    return "\n\n".join(reversed(parts))


def without_quotes(text: str) -> str:
    """A message that holds a traceback as text, with places and types of errors alone."""
    before, found, after = text.partition(_TRACEBACK)
    if not found:
        return text
    lines = [found]
    for line in after.splitlines():
        if place := _PLACE.match(line):
            lines.append(place[0])
        elif not line.startswith((" ", "\t")) and (error := _ERROR_LINE.match(line)):
            lines.append(error[0])
    return before + "\n".join(lines)
