"""What an engine runs at once: turns, and beside them replies that nobody has asked for yet, which give way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Of the KV cache: from here on the engine may soon have to interrupt one reply for another.
FULL = 0.9


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine's own scheduler holds right now.

    Attributes:
        running: requests in the batch.
        waiting: requests queued for it.
        cache_usage: part of the KV cache in use, 0 to 1.
    """

    running: int
    waiting: int
    cache_usage: float


class Places:
    """Counts what runs. Turns are never refused a place here; what was lent goes back when they need it.

    Attributes:
        turns: that run.

    Args:
        most: sequences that the engine runs at once; none where that is not known.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._lent: dict[Callable[[], None], None] = {}  # what ends each, the oldest first
        self._pressed = False  # the engine has more to do than it can
        self.turns = 0

    @property
    def lent(self) -> int:
        """Places that are lent."""
        return len(self._lent)

    def take(self) -> None:
        """Count a turn that begins. What it has no room beside is ended."""
        self.turns += 1
        while self._most is not None and self._lent and self.turns + len(self._lent) > self._most:
            self._call_back()

    def leave(self) -> None:
        """Count a turn that has ended."""
        self.turns -= 1

    def lend(self, end: Callable[[], None]) -> bool:
        """Lend a place where one is free; `end` is called when it is wanted back."""
        if self._pressed or (self._most is not None and self.turns + len(self._lent) >= self._most):
            return False
        self._lent[end] = None
        return True

    def give_back(self, end: Callable[[], None]) -> None:
        """Take back what was lent, if it still is."""
        self._lent.pop(end, None)

    def press(self, load: Load) -> None:
        """Note what the engine holds: where turns wait for a place, or its cache is nearly full, nothing is lent.

        A request that waits beside free places came in a moment ago, and is in the batch with the next step or two.
        """
        crowded = load.waiting > 0 and (self._most is None or load.running + load.waiting > self._most)
        self._pressed = crowded or load.cache_usage >= FULL
        while self._pressed and self._lent:
            self._call_back()

    def _call_back(self) -> None:
        end = next(iter(self._lent))
        del self._lent[end]
        end()
