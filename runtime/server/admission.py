"""Connection slots: slots held are always the admitted connections that are open."""

from __future__ import annotations

import asyncio
from collections import deque

from runtime.wire.frames import Capacity


class Slot:
    """A slot that one admitted connection holds. Releasing it twice releases it once."""

    __slots__ = ("_admission",)

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission

    def release(self) -> None:
        """Give the slot back, at once."""
        if self._admission is not None:
            admission, self._admission = self._admission, None
            admission._release()


class Admission:
    """A fixed number of slots, first come, first served."""

    def __init__(self, limit: int, timeout: float) -> None:
        """`limit` slots, each waited for at most `timeout` seconds."""
        if limit < 1:
            raise ValueError("expected at least one slot")
        self.limit = limit
        self._timeout = timeout
        self._held = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def held(self) -> int:
        """Slots in use."""
        return self._held

    def capacity(self) -> Capacity:
        """The slots as the protocol shows them."""
        free = self.limit - self._held
        return Capacity(active=self._held, max=self.limit, available=free, at_capacity=free == 0)

    async def acquire(self) -> Slot | None:
        """A slot, or None when none came free in time."""
        if self._held < self.limit:
            self._held += 1
            return Slot(self)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(waiter)
        try:
            await asyncio.wait((waiter,), timeout=self._timeout)
        except asyncio.CancelledError:
            if waiter.done():  # the slot was handed over while we were being cancelled: pass it on
                self._release()
            raise
        finally:
            if not waiter.done():
                self._queue.remove(waiter)
        return Slot(self) if waiter.done() else None

    def _release(self) -> None:
        if self._queue:  # handed over: the number of held slots stays
            self._queue.popleft().set_result(None)
        else:
            self._held -= 1
