"""A WebSocket within bounds: frames that are no messages are counted, long runs of frames wait their turn, ends end.

What costs nothing stays as uvicorn does it: a message that came in one small piece takes the way that it always took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState
from websockets.frames import Frame
from websockets.protocol import State

from runtime.server.front.config import FrontConfig
from runtime.server.front.heads import refusal
from runtime.server.front.sockets import CLOSE_DEADLINE_S, Socket
from runtime.wire.frames import CLOSE_POLICY

# Pings, pongs, and pieces of messages: so many in so many seconds. A browser's library sends one ping in some seconds;
# a message of 256 KiB in pieces of 1 KiB has 256 of them.
FRAMES, FRAME_WINDOW_S = 1000, 10.0
# After our close frame the peer has its own to send, and what was on its way.
LAST_FRAMES = 50
# Parsed in one go: 700 of the smallest frames, some 3 ms.
SLICE_BYTES = 4096
# What a client with a slot sends at once, and most messages are no longer, waits for nobody: everybody may do so in the
# same step of the event loop.
SHORT_BYTES = 1024
# What a peer sends after our close frame is read up to here, in search of its answer.
LINGER_BYTES = 1_048_576


class WebSocketFront(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket with our bounds."""

    _send_plain = WebSocketsSansIOProtocol.send  # found without `super()`, at each token

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
        self.close_timeout = CLOSE_DEADLINE_S  # uvicorn's own, from our close frame to the end
        self._slices = config.front.slices  # shared by all connections
        self._sockets = config.front.sockets  # counts what is dropped
        self._rest = bytearray()  # came, and was not parsed yet; nothing is read meanwhile
        self._queued = False  # a slice of it waits for its turn
        self._window_ends = 0.0  # loop time
        self._frames = 0  # frames in this window that were no messages
        self._late = 0  # frames since our close frame
        self._lingered = 0  # bytes since our close frame

    @property
    def leaving(self) -> bool:
        """Whether a close frame is on its way."""
        return self.close_sent or self.transport.is_closing()

    def take_over(self, socket: Socket, transport: asyncio.Transport, head: bytes) -> None:
        """Go on with a connection whose handshake was read."""
        self.socket = socket
        socket.peer = self
        self.connection_made(transport)
        self._feed(head)
        if not self.handshake_initiated:  # websockets could not read it, and says nothing to anybody
            self._sockets.count("malformed")
            self.handshake_complete = self.close_sent = True
            transport.write(refusal(HTTPStatus.BAD_REQUEST))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the socket, whose connection ended."""
        self.socket.connection_lost()
        self._rest.clear()
        super().connection_lost(exc)
        # A generator that holds `conn`, and errors whose frames do: a hundred objects that only the garbage collector
        # would find, and many such at once hold everybody up.
        self.conn.parser.close()
        self.conn.parser_exc = self.conn.handshake_exc = None

    # Bytes

    def data_received(self, data: bytes) -> None:
        """Parse what is short at once; what is long, or comes from who has no slot, in slices.

        One slice in each step of the loop comes at once too: a turn with its persona is longer than short, and mostly
        nobody else sends one in the same moment.
        """
        if self.close_sent:
            self._lingered += len(data)
            if self._lingered > LINGER_BYTES:
                self.socket.drop("unread")
                return
        elif self.socket.admitted and not self._rest:
            size = len(data)
            if size <= SHORT_BYTES or (size <= SLICE_BYTES and self._slices.passes()):
                self._feed(data)
                return
        if not self._rest and not self.read_paused:
            self.transport.pause_reading()
        self._rest += data
        self._enter()

    def _feed(self, data: bytes) -> None:
        try:
            self.conn.receive_data(data)
            if self.conn.parser_exc is not None:
                self.handle_parser_exception()
                return
            self.handle_events()
        except (
            InvalidState
        ):  # a message that is no text, and behind it the peer's close frame, which was read before it
            self.handle_parser_exception()
        except BaseException:
            # In a slice's turn nobody else would end it, and who is not read any more would keep a slot.
            self.transport.abort()
            raise

    def _enter(self) -> None:
        if not self._queued:
            self._queued = True
            self._slices.enter(self._next_slice)

    def _next_slice(self) -> None:
        self._queued = False
        if self.transport.is_closing():
            self._rest.clear()
            return
        if self.read_paused and not self.close_sent:  # a message waits to be taken; then it goes on
            return
        piece = bytes(self._rest[:SLICE_BYTES])
        del self._rest[:SLICE_BYTES]
        self._feed(piece)
        if self._rest:
            self._enter()
        elif not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    async def receive(self) -> Any:  # noqa: ANN401 - uvicorn's own event
        """The next message; what waits behind it comes before what the peer sends next."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            if self._rest:
                self._enter()
            else:
                self.transport.resume_reading()
        return message

    def send(self, message: Any) -> Coroutine[Any, Any, None]:  # noqa: ANN401 - uvicorn's own event
        """Send; a text with `more` goes together with what follows at once, in one piece for the socket."""
        return self._hold(message) if "more" in message else self._send_plain(message)

    async def _hold(self, message: Any) -> None:  # noqa: ANN401
        conn = self.conn
        if self.handshake_complete and conn.state is State.OPEN and not self.close_sent and self.writable.is_set():
            conn.send_text(message["text"].encode())  # it stays with the connection until the next is sent
        else:
            await self._send_plain(message)

    async def run_asgi(self) -> None:
        """Serve, then read on for the peer's answer to our close frame."""
        await super().run_asgi()
        if self._rest:
            self._enter()

    # Frames

    def handle_ping(self) -> None:
        """Answer it, unless the peer reads no answers, or is on its way out."""
        pongs = self.conn.data_to_send()
        if self._count() and self.handshake_complete and not self.close_sent and self.writable.is_set():
            self.transport.write(b"".join(pongs))

    def handle_pong(self, event: Frame) -> None:
        """Nobody asked for it."""
        self._count()

    def handle_text(self, event: Frame) -> None:
        """A message, or the first piece of one."""
        if (event.fin and not self.close_sent) or self._count():
            super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """A message, or the first piece of one."""
        if (event.fin and not self.close_sent) or self._count():
            super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """One more piece; an empty one takes no place."""
        if self._count() and (event.data or event.fin):
            super().handle_cont(event)

    def handle_parser_exception(self) -> None:
        """The peer does not speak the protocol: tell it, and leave."""
        if self.conn.close_sent is None or self.close_sent:
            self.transport.close()
            return
        super().handle_parser_exception()

    def _count(self) -> bool:
        """Count a frame that is no message, or comes too late. False: it was one too many, and the connection ends."""
        if self.transport.is_closing():
            return False
        now = self.loop.time()
        if now >= self._window_ends:
            self._window_ends, self._frames = now + FRAME_WINDOW_S, 0
        self._frames += 1
        self._late += self.close_sent
        if self._frames <= FRAMES and self._late <= LAST_FRAMES:
            return True
        self._sockets.count("flood")
        self.conn.fail(CLOSE_POLICY, "too many frames that are no messages")
        self.handle_parser_exception()
        return False
