"""The time that a tuning may take, and what it does with what is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# Of the first trial, which compiles, what one takes that finds everything compiled; a guess until one was seen.
WARM_PART = 0.6
# The last trials are needed for any decision, and may take this much longer than the longest so far; at least so long.
CLOSING_FACTOR, LEAST_CLOSING_S = 1.5, 60.0


class Budget:
    """The time that a tuning may take.

    A candidate is tried while there is time for it and for what closes the tuning: the plain options again, without
    which nothing says how far the machine drifted, and the reading of the winner's text. It is ended when that time
    begins. So a tuning takes no longer than its budget, but where what closes it takes longer than expected.

    Attributes:
        limit_s: seconds that the next trial may take.

    Args:
        seconds: in all.
        closing: trials that close the tuning.
        clock: monotonic seconds; another one in tests.
    """

    def __init__(
        self, seconds: float = math.inf, *, closing: int = 2, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds, self.closing, self._clock = seconds, closing, clock
        self._took: list[float] = []
        self._until = clock() + seconds
        self.limit_s = seconds

    @property
    def left(self) -> float:
        """Seconds that are left; less than 0 where more was taken."""
        return self._until - self._clock()

    @property
    def expected(self) -> float:
        """Seconds that a trial takes."""
        if not self._took:
            return 0.0
        first, *later = self._took
        return min(later, default=WARM_PART * first)

    @property
    def text(self) -> str:
        """The budget in words."""
        return "no limit" if math.isinf(self.seconds) else f"{self.seconds / 60:.3g} minutes"

    def has_time(self) -> bool:
        """Whether another candidate can be tried; says how long it may take then."""
        self.limit_s = self.left - self.closing * self.expected
        return self.limit_s > 0 and self.limit_s >= self.expected

    def close(self) -> None:
        """Begin a trial that closes the tuning."""
        longest = max(self._took, default=0.0)
        self.limit_s = max(self.left, CLOSING_FACTOR * longest, LEAST_CLOSING_S)

    def took(self, seconds: float) -> None:
        """Remember what a trial took that went to its end."""
        self._took.append(seconds)

    def now(self) -> float:
        """Seconds on the clock that trials are timed by."""
        return self._clock()
