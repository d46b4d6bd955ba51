"""The work queue: what a client's messages ask, one after the other, by a worker that exists only while there is work.

The worker waits for tokenizing and for old turns to end, so that whoever reads the socket never has to.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from runtime.host import eager_tasks
from runtime.turns.turn import Turn
from runtime.wire import messages

# Messages that wait. The rate limit bounds them too, where it is not switched off.
BACKLOG = 64


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """One message that waits for the worker.

    Attributes:
        run: does what the message asks.
        message: the message itself, for an error.
        turn: the turn that the message begins, if any.
    """

    run: Callable[[], Awaitable[None]]
    message: messages.Inbound
    turn: Turn | None = None


class WorkQueue:
    """One connection's messages that wait, and its worker.

    Attributes:
        worked_at: loop time at which the worker was last done; 0 before.

    Args:
        failed: called with a message that could not be done, while its error is being handled.
        done: awaited for each message when it was done, whether it failed or not.
    """

    def __init__(
        self, failed: Callable[[QueuedMessage, Exception], None], done: Callable[[QueuedMessage], Awaitable[None]]
    ) -> None:
        self._failed = failed
        self._done = done
        self._waiting: deque[QueuedMessage] = deque()
        self._current: QueuedMessage | None = None  # what the worker is at
        self._worker: asyncio.Future[None] | None = None  # none while nothing waits
        self.worked_at = 0.0

    @property
    def entries(self) -> tuple[QueuedMessage, ...]:
        """What is not done, the one that the worker is at first."""
        return (*((self._current,) if self._current is not None else ()), *self._waiting)

    @property
    def full(self) -> bool:
        """Whether nothing more may be put."""
        return len(self._waiting) >= BACKLOG

    def put(self, entry: QueuedMessage) -> None:
        """Queue a message; it is begun at once where nothing waits."""
        self._waiting.append(entry)
        if self._worker is None:
            worker = eager_tasks.start(self._run())
            self._worker = None if worker.done() else worker

    async def wait(self) -> bool:
        """Wait until the worker has done all; false when nothing was there to wait for."""
        if self._worker is None or self._worker.done():
            return False
        await asyncio.wait((self._worker,))
        return True

    async def stop(self) -> None:
        """Stop the worker where it is."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait((self._worker,))

    def clear(self) -> None:
        """Refuse the turns of what still waits, and let go of who is told: the worker has stopped for good."""
        for entry in self._waiting:
            if entry.turn is not None:
                entry.turn.refuse()
        self._waiting.clear()
        self._failed, self._done = _tell_nobody, _await_nothing

    async def _run(self) -> None:
        try:
            while self._waiting:
                self._current = self._waiting.popleft()
                await self._process(self._current)
        finally:
            self._current = self._worker = None
            self.worked_at = asyncio.get_running_loop().time()

    async def _process(self, entry: QueuedMessage) -> None:
        try:
            await entry.run()
        except Exception as error:  # noqa: BLE001 - the messages behind it are done all the same
            self._failed(entry, error)
        finally:
            await self._done(entry)


def _tell_nobody(entry: QueuedMessage, error: Exception) -> None:
    pass


async def _await_nothing(entry: QueuedMessage) -> None:
    pass
