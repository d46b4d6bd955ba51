"""HTTP/1.1 within bounds: one whole head at a time, no more body than was announced, and a way out for the rest.

h11 does the parsing on every lane (httptools is only where vLLM brings it along). A WebSocket's handshake goes straight
to websockets' parser, and a plain request for a completion past every parser (`direct`), so that each is read once.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from runtime.defaults import KEEP_ALIVE_S
from runtime.server.front.config import Front, FrontConfig
from runtime.server.front.direct import DirectCycle
from runtime.server.front.heads import (
    END,
    HEAD_BYTES,
    Head,
    HeadRefused,
    check_partial,
    drop_empty_lines,
    plain,
    read_head,
    to_origin_form,
)
from runtime.server.front.sockets import socket_of
from runtime.server.front.websocket import WebSocketFront

# What a refused peer was still sending is read and thrown away up to here, so that it gets to see the answer.
LINGER_BYTES = 1_048_576


class HttpFront(H11Protocol):
    """A connection until it is a WebSocket, or to its end."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not isinstance(config, FrontConfig):
            raise TypeError("expected a FrontConfig")
        super().__init__(config, server_state, app_state, _loop)
        self._front = config.front  # shared by all connections
        self._held = bytearray()  # came, and was not given to h11 yet
        self._searched = 0  # so many of these bytes hold no end of a head
        self._queued = False  # a head is complete and waits for its turn
        self._head = b""  # the head that was read last
        self._body_left = 0  # bytes that were announced and did not come yet
        self._refused = False  # the last answer is on its way; what comes is thrown away
        self._ended = False  # no more comes from the peer
        self._discarded = 0  # bytes that were thrown away

    @property
    def leaving(self) -> bool:
        """Whether the last answer is on its way."""
        return self._refused or self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A socket, about which nothing is known."""
        super().connection_made(transport)
        self.socket = self._front.sockets.opened(transport)
        self.socket.peer = self
        self.app_state = {**self.app_state, "socket": self.socket}

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the socket, whose connection ended."""
        self.socket.connection_lost()
        self._unset_keepalive_if_required()  # a timer would keep all of this for seconds
        super().connection_lost(exc)
        if isinstance(self.cycle, DirectCycle):
            self.cycle.connection_lost()

    def data_received(self, data: bytes) -> None:
        """Hold back what is no whole head yet."""
        if self._refused:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.socket.drop("malformed")
            return
        self._unset_keepalive_if_required()
        if self.socket.idle:
            self.socket.request_begun()
        self._held += data
        if self._body_left:
            self._read_body()
        self._check_bounds()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The peer has nothing more to say; whether it still waits for an answer.

        Who hangs up looks the same as who has said all. What holds a slot is not made for nobody: there it has hung up.
        So it has where the rest of a body was still to come: nobody waits for what cannot be asked any more.
        """
        self._ended = self.socket.ended = True
        return self._answering and not self._body_left and not self._refused and not self.socket.admitted

    @property
    def _answering(self) -> bool:
        """Whether a request waits for its turn, or for its answer."""
        return self._queued or (self.cycle is not None and not self.cycle.response_complete)

    async def send_piece(self, data: bytes) -> None:
        """Send a piece of an answer that is chunked, and has begun, as h11 would write it.

        h11 keeps no count of what it writes in chunks, so it need not know; it costs more than all else for a token.
        """
        if self.flow.write_paused and not self.cycle.disconnected:
            await self.flow.drain()
        if data and not self.cycle.disconnected:  # an empty chunk would be the last one
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def on_response_complete(self) -> None:
        """Go on after an answer was sent: what came meanwhile is next."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._body_left:  # answered without reading: where the next request begins is no use to anybody
            self._close_slowly()
            return
        self.socket.answered()
        if self._held:  # the next one
            self.socket.request_begun()
        self._check_bounds()
        if self._ended and not self._answering:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what h11 could not read."""
        if (error := sys.exc_info()[1]) is not None:
            error.__traceback__ = (
                None  # h11 raises it from a frame that holds it: a cycle with the whole connection in it
            )
        self._refuse(HTTPStatus.BAD_REQUEST, self._head)

    def handle_websocket_upgrade(self, event: object) -> None:
        """Hand over the head that was read, should h11 see a handshake where we did not."""
        self._become_websocket()

    def _check_bounds(self) -> None:
        """Queue the next head for its turn when it is whole, and refuse what will never be one."""
        if self._queued or self._body_left or not self._held:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            if len(self._held) > HEAD_BYTES:  # requests that come without waiting for answers have an end
                self.socket.drop("malformed")
            return
        if not self._searched:
            drop_empty_lines(self._held)
        found = self._held.find(END, max(0, self._searched - len(END) + 1))
        self._searched = len(self._held)
        if found >= 0:
            self._queued = True
            to_origin_form(self._held)
            if bytes(self._held[: self._held.find(b"\r\n")]) in self._front.direct:
                self._front.direct_heads.enter(partial(self._in_turn, self._read_direct_head))
            else:
                self._front.heads.enter(partial(self._in_turn, self._read_head))
            return
        try:
            check_partial(self._held)
        except HeadRefused as refused:
            self._refuse(refused.status, self._held)

    def _in_turn(self, step: Callable[[], None]) -> None:
        """Take a step in its turn, where nobody else would end a connection whose step fails."""
        try:
            step()
        except BaseException:
            self.transport.abort()
            raise

    def _read_direct_head(self) -> None:
        """Serve a request past h11, or let it wait among those that h11 reads."""
        head = self._next_head()
        if head is None:
            return
        if plain(self._held, head):
            self._take(head)
            self._begin(head, self._front.direct[head.request])
            self._go_on()
        else:
            self._front.heads.enter(partial(self._in_turn, self._read_head))

    def _read_head(self) -> None:
        head = self._next_head()
        if head is None:
            return
        self._take(head)
        if head.websocket:
            self._become_websocket()
            return
        super().data_received(self._head)
        self._go_on()

    def _next_head(self) -> Head | None:
        """Judge the head whose turn it is; none where there will be no answer but a refusal."""
        try:
            if not self._refused and not self.transport.is_closing():
                return read_head(self._held, self._front.bodies)
        except HeadRefused as refused:
            self._refuse(refused.status, self._held)
        self._queued = False
        return None

    def _take(self, head: Head) -> None:
        self._unset_keepalive_if_required()  # set after the answer before, where this one came meanwhile
        self._queued, self._searched = False, 0
        self._head = bytes(self._held[: head.size])
        del self._held[: head.size]
        self._body_left = 0 if head.websocket else head.body
        self.socket.request_begun()

    def _go_on(self) -> None:
        """Read what has come behind a head."""
        self._read_body()
        if self._ended and self._body_left:  # the rest will not come
            self.transport.close()
            return
        self._check_bounds()

    def _read_body(self) -> None:
        """As much as was announced: what comes behind it is another head."""
        piece = bytes(self._held[: self._body_left])
        if piece and not self.transport.is_closing():
            del self._held[: len(piece)]
            self._body_left -= len(piece)
            if isinstance(self.cycle, DirectCycle) and not self.cycle.response_complete:
                self.cycle.feed(piece, last=not self._body_left)
            else:
                super().data_received(piece)

    def _begin(self, head: Head, app: ASGIApp) -> None:
        """Serve a request past h11."""
        self.cycle = cycle = DirectCycle(self, head)
        task = self.loop.create_task(cycle.run_asgi(app))  # type: ignore[arg-type] # uvicorn has types of its own
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _become_websocket(self) -> None:
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        protocol = WebSocketFront(self.config, self.server_state, self.app_state, self.loop)
        protocol.take_over(self.socket, self.transport, self._head)
        self.transport.set_protocol(protocol)
        if self._held:
            protocol.data_received(bytes(self._held))
            self._held.clear()

    def _refuse(self, status: HTTPStatus, head: bytes | bytearray) -> None:
        self._front.sockets.count("malformed")
        self.transport.write(self._front.explain(bytes(head), status))
        self._close_slowly()

    def _close_slowly(self) -> None:
        """Say that no more comes from us, and throw away what still comes from there, in time and in bytes."""
        self._refused = True
        self._held.clear()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()


class Pieces(Protocol):
    """Takes pieces of an answer that has begun."""

    async def send_piece(self, data: bytes) -> None:
        """Send a piece; waits while the client does not read."""


def pieces_of(scope: Scope) -> Pieces | None:
    """The shortest way for pieces of a request's answer, where there is one beside ASGI's."""
    peer = socket_of(scope).peer
    if not isinstance(peer, HttpFront) or scope["http_version"] != "1.1":
        return None
    return peer.cycle if isinstance(peer.cycle, DirectCycle) else peer


def serve_behind(
    front: Front, app: ASGIApp, *, max_message_bytes: int, backlog: int, keep_alive: float = KEEP_ALIVE_S
) -> FrontConfig:
    """uvicorn's configuration for an application.

    Raises:
        FrontError: uvicorn is not the one that this was written for.
    """
    return FrontConfig(
        app,
        front,
        http=HttpFront,
        ws=WebSocketFront,
        max_message_bytes=max_message_bytes,
        backlog=backlog,
        keep_alive=keep_alive,
    )
