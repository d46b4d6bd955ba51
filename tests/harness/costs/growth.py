"""How the cost of some work grows with its input. Ratios say the same on a fast and on a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable

# Work that grows by the square takes 64 times as long on 8 times as much.
STEP = 8
ALLOWED = 28
# What a clock, a cache and a collection of garbage can make of nothing.
NOTHING_S = 0.002


def seconds(work: Callable[[str], object], text: str, *, tries: int = 3) -> float:
    """Seconds of this thread's own time that the work takes, the best of some tries."""
    best = float("inf")
    for _ in range(tries):
        began = time.thread_time()
        work(text)
        best = min(best, time.thread_time() - began)
    return best


def assert_linear(work: Callable[[str], object], unit: str, *, characters: int = 8_000) -> None:
    """Fail when `STEP` times as many units take much more than `STEP` times as long."""
    short = unit * (characters // len(unit))
    before, after = seconds(work, short), seconds(work, short * STEP)
    assert after < ALLOWED * max(before, NOTHING_S), (unit, before, after)
