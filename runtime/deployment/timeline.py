"""Where the time of a start goes: one phase after another, without a gap and without counting a second twice.

Times are those of `time.monotonic`, which on Linux is one clock for all processes of a machine, so that what another
process did can be put between.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

# When a phase began, in seconds, and its name.
Mark = tuple[float, str]


def process_began() -> float:
    """When this process was executed, by `time.monotonic`, to a hundredth of a second; now where that is not told."""
    now = time.monotonic()
    try:
        # The name in brackets may hold anything; `starttime` is the 22nd field, in ticks since the machine was booted.
        ticks = int(Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()[19])
        return min(now, now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")))
    except (OSError, ValueError, IndexError, AttributeError):
        return now


class Timeline:
    """Phases one after another, from `began` on; each lasts until the next one begins.

    Args:
        began: when the first phase began.
        phase: its name.
    """

    def __init__(self, began: float, phase: str) -> None:
        self._marks: list[Mark] = [(began, phase)]
        self._ended: float | None = None  # none while it goes on

    def enter(self, phase: str, at: float | None = None) -> None:
        """Begin a phase, now or at a time. Nothing where the timeline has ended."""
        if self._ended is None:
            self._marks.append((time.monotonic() if at is None else at, phase))

    def splice(self, marks: Iterable[Mark]) -> None:
        """Put in what another process, or another part, has noted meanwhile. Its times need no order."""
        if self._ended is None:
            self._marks += marks

    def end(self, at: float | None = None) -> None:
        """End the last phase. A timeline ends once."""
        if self._ended is None:
            self._ended = time.monotonic() if at is None else at

    def phases(self) -> dict[str, float]:
        """Seconds of each phase, in the order of their beginnings; together what passed from the beginning on.

        What began before the first phase, or after the end, counts as begun there. A phase that was entered twice has
        the sum.
        """
        first = self._marks[0][0]
        end = max(first, time.monotonic() if self._ended is None else self._ended)
        marks = sorted((min(max(at, first), end), index) for index, (at, _) in enumerate(self._marks))
        took: dict[str, float] = {}
        for (at, index), (until, _) in zip(marks, [*marks[1:], (end, 0)], strict=True):
            name = self._marks[index][1]
            took[name] = took.get(name, 0.0) + until - at
        return took
