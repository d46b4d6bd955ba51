"""Whoever holds a slot of a server's: a connection, or a request over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Protocol

from runtime.host.supervision import attempt
from runtime.host.timeouts import within
from runtime.turns.turn import Stop
from runtime.wire import frames


class Admitted(Protocol):
    """A connection, or a request over HTTP, that holds a slot.

    Attributes:
        closed: set when it has ended.
    """

    closed: asyncio.Event

    def close(self, code: int, reason: str, last: frames.Frame | None = None, why: Stop = Stop.DISCONNECT) -> None:
        """End what runs, say so, and end it: the close code and reason of a WebSocket, and its last frame."""

    def drain(self, seconds: float) -> None:
        """End it when nothing of it runs, after `seconds` at the latest."""


class Connections(set[Admitted]):
    """All that are open. One that cannot be closed keeps none of the others."""

    def close(self, code: int, reason: str, why: Stop) -> None:
        """End all of them, and say so."""
        for connection in list(self):
            attempt("close_connection", partial(connection.close, code, reason, why=why))

    def drain(self, seconds: float) -> None:
        """End each when nothing of it runs, after so many seconds at the latest."""
        for connection in list(self):
            attempt("drain_connection", partial(connection.drain, seconds))

    async def gone(self, timeout: float) -> None:
        """Wait until all have ended, for so many seconds at most."""
        closed = [connection.closed.wait() for connection in self]
        with contextlib.suppress(asyncio.TimeoutError):
            await within(timeout, asyncio.gather(*closed))


def close_removed(connection: Admitted) -> None:
    """Close a connection whose key is not accepted any more."""
    last = frames.Error(error_code="authentication_failed", message="The API key was taken away.")
    connection.close(frames.CLOSE_POLICY, "key_removed", last)
