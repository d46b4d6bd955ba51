"""Sliding windows: at most so many events in any stretch of so many seconds."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable


class SlidingWindow:
    """Allows `limit` events per `seconds`; a limit of 0 allows everything. Memory is bounded by the limit."""

    __slots__ = ("_clock", "_events", "_limit", "_seconds")

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._events: deque[float] | None = None

    def take(self) -> int:
        """Count one event and return 0, or refuse it and return the whole seconds after which it may come again."""
        wait = self.wait()
        if wait == 0 and self._limit > 0:
            if self._events is None:  # most connections idle: no deque before the first event
                self._events = deque()
            self._events.append(self._clock())
        return wait

    @property
    def used(self) -> int:
        """Events that still count."""
        return self._drop_old(self._clock())

    @property
    def last(self) -> float:
        """When the last event was, as the clock tells; before everything where none still counts."""
        self._drop_old(self._clock())
        return self._events[-1] if self._events else -math.inf

    def ages(self) -> tuple[float, ...]:
        """Seconds since each event that still counts, the oldest first."""
        if not self._events:
            return ()
        now = self._clock()
        self._drop_old(now)
        return tuple(now - event for event in self._events or ())

    def restore(self, ages: Iterable[float]) -> None:
        """Count events that were counted elsewhere, so many seconds ago, and no others."""
        now = self._clock()
        events = sorted(now - min(max(0.0, age), self._seconds) for age in ages)
        self._events = deque(events[-self._limit :]) if self._limit > 0 and events else None

    def wait(self) -> int:
        """Seconds until an event would be allowed, rounded up; 0 when it would be now."""
        if self._limit <= 0 or self._events is None:
            return 0
        now = self._clock()
        if self._drop_old(now) < self._limit:
            return 0
        return max(1, math.ceil(self._events[0] + self._seconds - now))

    def _drop_old(self, now: float) -> int:
        """Drop events that count no more; return how many are left."""
        events = self._events
        if events is None:
            return 0
        while events and events[0] + self._seconds <= now:
            events.popleft()
        return len(events)
