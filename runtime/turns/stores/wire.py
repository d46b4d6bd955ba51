"""One connection to a Valkey server: requests go out as they come, and answers come back in the same order.

The protocol itself, packing and reading, is libvalkey's. Nothing here waits in streams, locks or a pool: what a request
costs beside its system calls is a future and a timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import libvalkey

from runtime.turns.stores.interface import StoreError

Argument = bytes | str | int
Command = tuple[Argument, ...]


class Refusal(Exception):
    """What the server answers to a command that it does not do. It holds neither values nor passwords."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())[:200]


def _gone() -> StoreError:
    return StoreError("the connection is gone")


class _Request:
    """Commands that were sent together.

    Attributes:
        commands: how many.
        done: for whoever asked.
        timer: for the deadline.
        answers: that have come so far.
    """

    __slots__ = ("answers", "commands", "done", "timer")

    def __init__(self, commands: int, done: asyncio.Future[list[object]], timer: asyncio.TimerHandle) -> None:
        self.commands = commands
        self.done = done
        self.timer = timer
        self.answers: list[object] = []


class Wire(asyncio.Protocol):
    """One connection. Where anything goes wrong on it, it is closed: nobody knows what still comes on it.

    Attributes:
        open: whether it may be asked.
    """

    def __init__(self) -> None:
        self.open = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[_Request] = deque()
        self._more = object()  # what the reader gives where an answer is not whole yet
        self._reader = libvalkey.Reader(replyError=Refusal, notEnoughData=self._more)

    async def ask(self, commands: Sequence[Command], deadline: float) -> list[object]:
        """Send commands at once, and return what each is answered with, which may be a `Refusal`.

        Args:
            commands: to be done in their order.
            deadline: on the loop's clock.

        Raises:
            StoreError: the connection is gone.
            asyncio.TimeoutError: there was no answer in time, and so the connection is gone too.
        """
        if self._transport is None or not self.open:
            raise _gone()
        done: asyncio.Future[list[object]] = self._loop.create_future()
        # Whoever is cancelled waits no more; the answers come nonetheless, and are for nobody.
        self._waiting.append(_Request(len(commands), done, self._loop.call_at(deadline, self._late)))
        self._transport.write(b"".join([libvalkey.pack_command(command) for command in commands]))
        return await done

    def close(self, error: Callable[[], Exception] = _gone) -> None:
        """Let go of it at once: what waits in its buffers is for nobody.

        Args:
            error: makes what those are told who wait.
        """
        self.open = False
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            request.timer.cancel()
            if not request.done.done():
                request.done.set_exception(error())

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's own transports share no class with asyncio's.
        self._transport, self.open = cast("asyncio.Transport", transport), True

    def data_received(self, data: bytes) -> None:
        """Give answers to those who wait for them."""
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not self._more:
                request = self._waiting[0]
                request.answers.append(answer)
                if len(request.answers) == request.commands:
                    self._waiting.popleft()
                    request.timer.cancel()
                    if not request.done.done():
                        request.done.set_result(request.answers)
        # Or an answer that nobody waits for, or a map by what cannot be the key of one.
        except (libvalkey.ProtocolError, IndexError, TypeError):
            self.close(partial(StoreError, "an answer of another form"))

    def connection_lost(self, error: Exception | None) -> None:
        """Tell those who wait."""
        self.close(partial(StoreError, told(error)) if error is not None else _gone)

    def _late(self) -> None:
        self.close(asyncio.TimeoutError)


def told(error: BaseException) -> str:
    """An error for the log, in one line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
