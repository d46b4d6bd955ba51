"""Connection slots: slots held are always the admitted connections that are open."""

from __future__ import annotations

import asyncio
from collections import deque

from runtime.wire.frames import Capacity


class Slot:
    """One admitted connection's right to be there. Giving it back twice is one return."""

    __slots__ = ("_gate",)

    def __init__(self, gate: Admission) -> None:
        self._gate: Admission | None = gate

    def release(self) -> None:
        """Give the slot back, at once."""
        if self._gate is not None:
            gate, self._gate = self._gate, None
            gate._returned()


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
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await asyncio.wait((turn,), timeout=self._timeout)
        except asyncio.CancelledError:
            if turn.done():  # the slot was handed over while we were being cancelled: pass it on
                self._returned()
            raise
        finally:
            if not turn.done():
                self._queue.remove(turn)
        return Slot(self) if turn.done() else None

    def _returned(self) -> None:
        if self._queue:  # handed over: the number of held slots stays
            self._queue.popleft().set_result(None)
        else:
            self._held -= 1
