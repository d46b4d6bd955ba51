"""What a client that does not behave is given, and what it says of itself."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.attack import raw


@dataclass(frozen=True)
class Target:
    """The server on loopback, and nowhere else."""

    port: int
    key: str


class Clock:
    """So many seconds, and then no more."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def __bool__(self) -> bool:
        return time.monotonic() < self._end

    def sleep(self, seconds: float) -> None:
        """Wait, but not past the end."""
        time.sleep(max(0.0, min(seconds, self._end - time.monotonic())))


@dataclass(frozen=True)
class Attack:
    """A client that does not behave.

    Attributes:
        name: what it is asked for by.
        does: one line for people.
        run: do it until the clock says no more.
        unlimited: rate limits would stop it early; a server of our own has none then.
        shared: it takes what it may have of the server; the client that watches needs another key.
    """

    name: str
    does: str
    run: Callable[[Target, Clock], None]
    unlimited: bool = False
    shared: bool = False


@dataclass
class Crowd:
    """Many connections at once; who was thrown out comes back."""

    size: int
    enter: Callable[[], socket.socket]
    inside: list[socket.socket] = field(default_factory=list)

    def fill(self, clock: Clock) -> None:
        """Bring it to its size, or to the end of the time."""
        while clock and len(self.inside) < self.size:
            try:
                connection = self.enter()
            except OSError:
                clock.sleep(0.001)
                continue
            connection.setblocking(False)
            self.inside.append(connection)

    def send(self, data: bytes) -> None:
        """Let everybody send, and nobody read; who cannot any more is gone."""
        for connection in list(self.inside):
            try:
                connection.send(data)
            except BlockingIOError:
                continue
            except OSError:
                self.inside.remove(connection)
                connection.close()

    def leave(self) -> None:
        """Go without a word."""
        for connection in self.inside:
            connection.close()
        self.inside.clear()


def pour(target: Target, clock: Clock, begin: bytes, piece: bytes, *, key: str | None = None) -> None:
    """Send a beginning, then the same piece for ever, on one connection until it is cut; read nothing.

    With a key, or a wrong one, over a WebSocket.
    """
    with contextlib.suppress(OSError):
        if key is None:
            connection = raw.connect(target.port, receive_buffer=4096, timeout=0.5)
        else:
            connection = raw.websocket(target.port, key, receive_buffer=4096)
            connection.settimeout(0.5)
        with connection:
            connection.sendall(begin)
            while clock:
                connection.sendall(piece)
