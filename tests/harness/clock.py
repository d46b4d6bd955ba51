"""A clock that tests set."""

from __future__ import annotations


class Clock:
    """A time that stands until a test moves it, and how often it was asked for.

    Attributes:
        now: seconds.
        asked: counts what was asked of it, so that a cost can be told without time.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.asked = 0

    def __call__(self) -> float:
        """Tell the time."""
        self.asked += 1
        return self.now
