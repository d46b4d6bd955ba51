"""Work of peers who may be many: a little of it in each step of the event loop, first come, first served."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

Step = Callable[[], None]

# What is let in has work to do behind the throttle too, some times this.
STEP_S = 0.001


class LoopThrottle:
    """Lets so many through in each step of the event loop, so that a thousand at once hold nobody up for long."""

    def __init__(self, at_once: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """Let `at_once` through in a step, and fewer when they have taken `STEP_S`."""
        self._at_once = at_once
        self._clock = clock
        self._queue: deque[Step] = deque()
        self._scheduled = False

    def __len__(self) -> int:
        return len(self._queue)

    def enter(self, step: Step) -> None:
        """Queue a step; it comes in a later step of the loop, never now."""
        self._queue.append(step)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run_some)

    def passes(self) -> bool:
        """Whether one step may be taken now: nobody waits, and no other was in this step of the loop. It counts."""
        if self._scheduled:
            return False
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._run_some)
        return True

    def _run_some(self) -> None:
        try:
            end = self._clock() + STEP_S
            for _ in range(min(self._at_once, len(self._queue))):
                self._queue.popleft()()
                if self._clock() >= end:
                    break
        finally:
            self._scheduled = bool(self._queue)
            if self._queue:
                asyncio.get_running_loop().call_soon(self._run_some)
