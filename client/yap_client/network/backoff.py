"""How long to wait before the next attempt: exponential backoff with full jitter, within a bound."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """The pauses between attempts to connect; times in seconds.

    Each pause is drawn evenly between nothing and a ceiling that doubles: clients that lost one server together do not
    come back together.

    Attributes:
        first: the first ceiling.
        most: the highest ceiling.
        within: for so long it is tried; 0 tries once.
        draw: draws a number from 0 to 1.
    """

    first: float = 0.1
    most: float = 5.0
    within: float = 60.0
    draw: Callable[[], float] = random.random

    def pause(self, attempt: int) -> float:
        """The pause before an attempt, counted from 0.

        >>> backoff = Backoff(first=0.5, most=3.0, draw=lambda: 1.0)
        >>> [backoff.pause(attempt) for attempt in range(4)]
        [0.5, 1.0, 2.0, 3.0]
        """
        return self.draw() * min(self.most, self.first * 2.0 ** min(attempt, 32))
