"""Quotas of principals: how many connections each may have, and rate limits that reconnecting does not reset."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, takewhile

from runtime.host.ratelimit import SlidingWindow
from runtime.turns.principal import Principal


class Windows:
    """One kind of rate limit of one principal: a window for each of its connections.

    A connection that ends leaves its window behind, and the next one takes the one that was last used of those that lie
    there. So whoever reconnects goes on counting where it was, and connections that are open at the same time do not
    take from one another. There are never more windows than there were connections at once. They lie in the order of
    their last event: when thousands come back at once, none of them looks through all.
    """

    __slots__ = ("_left", "_make", "_numbers")

    def __init__(self, make: Callable[[], SlidingWindow]) -> None:
        self._make = make
        self._left: list[tuple[float, int, SlidingWindow]] = []  # of connections that have ended
        self._numbers = count()  # where events are of one time

    def take(self) -> SlidingWindow:
        """A window for a new connection."""
        self._drop_empty()
        return self._left.pop()[2] if self._left else self._make()

    def leave(self, window: SlidingWindow) -> None:
        """Keep the window of a connection that has ended, until its events are too old to count."""
        if window.used:
            insort(self._left, (window.last, next(self._numbers), window))
        self._drop_empty()

    def __len__(self) -> int:
        self._drop_empty()
        return len(self._left)

    def _drop_empty(self) -> None:
        empty = sum(1 for _ in takewhile(lambda left: not left[2].used, self._left))
        del self._left[:empty]


@dataclass(slots=True)
class _Held:
    """What one principal has: its connections, and their windows; and one window for all of its requests over HTTP."""

    messages: Windows
    cancels: Windows
    requests: SlidingWindow
    prepares: Windows
    seats: int = 0


class Seat:
    """One connection's part of its principal's quota. Leaving it twice leaves it once."""

    __slots__ = ("_held", "_prepares", "_windows")

    def __init__(self, held: _Held) -> None:
        self._held: _Held | None = held
        self._prepares: SlidingWindow | None = None
        self._windows: tuple[SlidingWindow, SlidingWindow] | None = None

    def windows(self) -> tuple[SlidingWindow, SlidingWindow]:
        """What limits the connection's messages, and its cancels. Who only waits for a slot takes none."""
        if self._held is None:
            raise RuntimeError("the seat was left")
        if self._windows is None:
            self._windows = self._held.messages.take(), self._held.cancels.take()
        return self._windows

    def prepares(self) -> SlidingWindow:
        """What limits the connection's prepares."""
        if self._held is None:
            raise RuntimeError("the seat was left")
        if self._prepares is None:
            self._prepares = self._held.prepares.take()
        return self._prepares

    def leave(self) -> None:
        """Give the seat back, at once."""
        held, self._held = self._held, None
        if held is not None:
            held.seats -= 1
            if self._prepares is not None:
                held.prepares.leave(self._prepares)
            if self._windows is not None:
                held.messages.leave(self._windows[0])
                held.cancels.leave(self._windows[1])


class Seats:
    """Seats of all principals.

    Args:
        most: how many each principal may have now; none for as many as there are slots.
        messages: makes a window for messages.
        cancels: makes a window for cancels.
        requests: makes a window for a principal's requests over HTTP.
        prepares: makes a window for prepares.
    """

    def __init__(
        self,
        most: Callable[[], int | None],
        messages: Callable[[], SlidingWindow],
        cancels: Callable[[], SlidingWindow],
        requests: Callable[[], SlidingWindow] = lambda: SlidingWindow(0, 1.0),
        prepares: Callable[[], SlidingWindow] = lambda: SlidingWindow(0, 1.0),
    ) -> None:
        self._most = most
        self._messages = messages
        self._cancels = cancels
        self._requests = requests
        self._prepares = prepares
        self._held: dict[Principal, _Held] = {}

    def taken(self, principal: Principal) -> int:
        """Connections that a principal has, and those that wait for a slot."""
        held = self._held.get(principal)
        return held.seats if held is not None else 0

    def take(self, principal: Principal) -> Seat | None:
        """A seat, or None when the principal has all that it may have."""
        held = self._of(principal)
        most = self._most()
        if most is not None and held.seats >= most:
            principal.refused += 1
            return None
        held.seats += 1
        return Seat(held)

    def request(self, principal: Principal) -> int:
        """Count a request over HTTP and return 0, or the whole seconds after which it may come again."""
        return self._of(principal).requests.take()

    def _of(self, principal: Principal) -> _Held:
        held = self._held.get(principal)
        if held is None:
            made = _Held(Windows(self._messages), Windows(self._cancels), self._requests(), Windows(self._prepares))
            held = self._held[principal] = made
        return held

    def forget(self, principal: Principal) -> None:
        """Drop what is kept of a principal that is gone; seats that it still has are left as usual."""
        self._held.pop(principal, None)


def connections_for_each(asked: int | None, slots: int, principals: int) -> int | None:
    """Connections that a principal may have: what was asked for, else all slots for one, and half for each of many.

    None where only the slots limit them: whoever comes then waits for one, as everybody does.
    """
    half = max(1, (slots + 1) // 2)
    most = asked if asked is not None else slots if principals <= 1 else half
    return most if most < slots or principals > 1 else None


def share_for_each(asked: int | None, total: int, principals: int) -> int:
    """What is kept for a principal at most: what was asked for, else an equal share, so that all together fit."""
    return asked if asked is not None else max(1, total // max(1, principals))
