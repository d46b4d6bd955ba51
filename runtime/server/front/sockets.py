"""Every open socket, and the end of those that take too long.

    opened ──► request begun ──► admitted (holds a slot) ──► slot released ──► connection lost
       │         │                                    │
       └─────────┴────────────────────────────────────┴──► dropped

A socket without a slot has a deadline while a request comes or is answered, and there is a cap on their number: one too
many, and the one that has been silent the longest goes. So silence cannot keep anybody out, health checks least of all.
Who is told to leave and does not is dropped after `CLOSE_DEADLINE_S`, whatever still waits to be read by it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, Literal, Protocol

import structlog

from runtime.host.supervision import attempt

log = structlog.get_logger(__name__)

# A peer that is gone, or does not read, is not waited for any longer.
CLOSE_DEADLINE_S = 5.0
SWEEP_S = 0.5
# One line in the log for all that were dropped in this time.
LOG_INTERVAL_S = 10.0

# deadline: no slot and no answer in time. too_many: too many without a slot. unread: did not let itself be closed.
# flood: frames that are no messages. malformed: bytes that are no request of ours.
Reason = Literal["deadline", "too_many", "unread", "flood", "malformed"]


class Peer(Protocol):
    """The protocol on a socket, as far as its end is concerned."""

    @property
    def leaving(self) -> bool:
        """Whether the end has begun: a close frame or a last answer is on its way."""


class Socket:
    """One TCP connection. Made without a registry, for tests of what stands on it, it is in nobody's way.

    Attributes:
        peer: the protocol on it; none before it is known, and at the end.
        admitted: whether it holds a slot.
        ended: whether no more comes from the peer.
        since: when its deadline began.
        idle: whether its requests are answered, and none has begun since.
        leaving_since: when its end was first seen to have begun.
    """

    __slots__ = ("_sockets", "_transport", "admitted", "ended", "idle", "leaving_since", "peer", "since")

    def __init__(self, sockets: Sockets | None = None, transport: asyncio.Transport | None = None) -> None:
        self._sockets = sockets  # the registry
        self._transport = transport  # none in tests alone
        self.peer: Peer | None = None
        self.admitted = False
        self.ended = False
        self.since = 0.0
        self.idle = False
        self.leaving_since: float | None = None

    @property
    def closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is not None and self._transport.is_closing()

    def request_begun(self) -> None:
        """Begin a new deadline: a request begins to come, or all of it has come."""
        self.idle = False
        if self._sockets is not None:
            self._sockets.renew(self)

    def answered(self) -> None:
        """Go without a deadline until the next request begins: whoever speaks HTTP on it ends it in time."""
        self.idle = True
        if self._sockets is not None:
            self._sockets.renew(self)

    def admit(self) -> None:
        """Take the socket out of those without a slot: no deadline of ours holds for it now."""
        if self._sockets is not None:
            self._sockets.admit(self)

    def slot_released(self) -> None:
        """Begin the last deadline of a socket that gave its slot back."""
        if self._sockets is not None:
            self._sockets.readmit(self)

    def connection_lost(self) -> None:
        """Take the closed socket out of the registry."""
        self.peer = None  # it knows this socket: a cycle would be left for the garbage collector
        if self._sockets is not None:
            self._sockets.remove(self)

    def drop(self, reason: Reason) -> None:
        """End the connection at once, whatever waits in either direction."""
        if self._sockets is not None:
            self._sockets.drop(self, reason)

    def abort(self) -> None:
        """End the connection at once, uncounted."""
        if self._transport is not None:
            self._transport.abort()


class Sockets:
    """The registry of all open sockets: it knows their deadlines, and drops those that take too long."""

    def __init__(
        self,
        cap: int,
        deadline: float,
        dropped: Callable[[Reason], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """At most `cap` without a slot, each for at most `deadline` seconds; `dropped` is told of each that ends."""
        self._cap = cap  # sockets without a slot
        self._deadline = deadline  # seconds
        self._dropped = dropped  # is told of each
        self._clock = clock  # seconds
        self._all: set[Socket] = set()  # those that are open
        self._unadmitted: dict[Socket, None] = {}  # the one that has been silent the longest first
        self._sweeping: asyncio.TimerHandle | None = None  # set while there is anything to look after
        self._untold: Counter[str] = Counter()  # drops that the log does not know of
        self._told_at = -LOG_INTERVAL_S  # when the log was told last

    @property
    def unadmitted(self) -> int:
        """Open sockets without a slot."""
        return len(self._unadmitted)

    def opened(self, transport: asyncio.Transport) -> Socket:
        """Register a connection that was just accepted."""
        socket = Socket(self, transport)
        self._all.add(socket)
        self.renew(socket)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        return socket

    def renew(self, socket: Socket) -> None:
        """Put it behind the others without a slot, unless it has one; of one too many, the first goes."""
        if socket in self._all and not socket.admitted:
            socket.since = self._clock()
            self._unadmitted.pop(socket, None)
            self._unadmitted[socket] = None
            if len(self._unadmitted) > self._cap:
                self.drop(next(iter(self._unadmitted)), "too_many")

    def admit(self, socket: Socket) -> None:
        """Note that a socket has a slot: no deadline of ours holds for it now."""
        if socket in self._all:
            socket.admitted = True
            self._unadmitted.pop(socket, None)

    def readmit(self, socket: Socket) -> None:
        """Note that a socket gave its slot back: a deadline holds for it again."""
        socket.admitted = False
        self.renew(socket)

    def remove(self, socket: Socket) -> None:
        """Take out a socket that is closed."""
        self._all.discard(socket)
        self._unadmitted.pop(socket, None)

    def drop(self, socket: Socket, reason: Reason) -> None:
        """End it, count it, and tell the log in time."""
        if socket not in self._all:
            return
        self.remove(socket)
        socket.abort()
        self.count(reason)

    def count(self, reason: Reason) -> None:
        """Count one that ends for that reason."""
        self._dropped(reason)
        self._untold[reason] += 1
        self._log_dropped()

    def _log_dropped(self) -> None:
        now = self._clock()
        if self._untold and now - self._told_at >= LOG_INTERVAL_S:
            self._told_at = now
            log.warning("sockets_dropped", unadmitted=len(self._unadmitted), **self._untold)
            self._untold.clear()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(SWEEP_S, self._sweep) if self._all or self._untold else None
        now = self._clock()
        for socket in list(self._all):
            attempt("socket_sweep", partial(self._check, socket, now))
        self._log_dropped()

    def _check(self, socket: Socket, now: float) -> None:
        if socket.closing or (socket.peer is not None and socket.peer.leaving):
            if socket.leaving_since is None:
                socket.leaving_since = now
            if now - socket.leaving_since >= CLOSE_DEADLINE_S:
                self.drop(socket, "unread")
        elif not socket.admitted and not socket.idle and now - socket.since >= self._deadline:
            self.drop(socket, "deadline")


def socket_of(scope: MutableMapping[str, Any]) -> Socket:
    """The socket that a request came in on."""
    socket = scope.get("state", {}).get("socket")
    return socket if isinstance(socket, Socket) else Socket()
