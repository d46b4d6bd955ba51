"""A request that no parser has to read, and its answer: its head is plain, and its first line is one that many send.

h11 reads what `read_head` has just read, and counts what is written; with a completion that costs more than admitting
it. So a head that is `plain` goes past it, to the application of its first line, and the answer is written here, as h11
would write it. All else about the connection is as it is for other requests, which may come before and behind on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from starlette.types import ASGIApp
from uvicorn._types import ASGISendEvent, HTTPScope
from uvicorn.protocols.http.flow_control import CLOSE_HEADER, HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from runtime.server.front.heads import Head, fields_are_valid

# First lines of requests, each with the application that answers them. None asks for an answer without its body (HEAD).
Direct = Mapping[bytes, ASGIApp]

LAST_CHUNK = b"0\r\n\r\n"
_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class DirectCycle(RequestResponseCycle):
    """One such request, from its head to the end of its answer."""

    def __init__(self, front: H11Protocol, head: Head) -> None:
        """Serve the request with that head on the connection of `front`."""
        method, target, _ = head.request.decode("ascii").split(" ")
        path, _, query = target.partition("?")
        scope: HTTPScope = {
            "type": "http",
            "asgi": {"version": front.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": front.server,
            "client": front.client,
            "scheme": front.scheme or "http",
            "method": method,
            "root_path": "",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": head.fields,
            "state": front.app_state.copy(),
        }
        super().__init__(
            scope=scope,
            conn=front.conn,  # which knows nothing of this request
            transport=front.transport,
            flow=front.flow,
            logger=front.logger,
            access_logger=front.access_logger,
            access_log=False,
            default_headers=front.server_state.default_headers,
            message_event=asyncio.Event(),
            on_response=front.on_response_complete,
        )
        self.waiting_for_100_continue = False
        self._call_when_lost: Callable[[], None] | None = None  # none where nobody wants to know
        self._head = b""  # of the answer, until its first piece goes
        self._left: int | None = 0  # bytes of the answer's body that are announced; none where it comes in chunks
        if not head.body:
            self.more_body = False
            self.message_event.set()

    def feed(self, data: bytes, *, last: bool) -> None:
        """Take a piece of the request's body."""
        self.body += data
        self.more_body = not last
        if not last and len(self.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()  # until it is taken
        self.message_event.set()

    def when_lost(self, call: Callable[[], None]) -> None:
        """Call something when the connection ends before the answer does, or now where it has."""
        self._call_when_lost = call
        if self.disconnected:
            self.connection_lost()

    def forget(self) -> None:
        """Call nothing any more."""
        self._call_when_lost = None

    def connection_lost(self) -> None:
        """Tell whoever wants to know that nobody waits for the answer any more."""
        call = self._call_when_lost
        self.forget()
        if call is not None and self.disconnected:
            call()

    async def send(self, message: ASGISendEvent) -> None:
        """Send a part of the answer, as ASGI has it. The head goes with the first piece of the body.

        Raises:
            RuntimeError: it is not what comes next.
        """
        if message["type"] == "http.response.body":
            await self.send_piece(message.get("body", b""), last=not message.get("more_body", False))
        elif message["type"] != "http.response.start" or self.response_started:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")
        elif not self.disconnected:
            self._begin(message["status"], [*self.default_headers, *message.get("headers", ())])

    async def send_piece(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece of the body; waits while the client does not read.

        Raises:
            RuntimeError: the answer has not begun, or has ended, or its length is another one than its head says.
        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started or self.response_complete:
            raise RuntimeError("unexpected piece of an answer")
        if self._left is None:
            chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""  # an empty one would be the last
            piece = chunk + LAST_CHUNK if last else chunk
        else:
            piece = data
            self._left -= len(data)
            if self._left < 0 or (last and self._left):
                raise RuntimeError("an answer of another length than its head says")
        if self._head:
            piece, self._head = self._head + piece, b""
        if piece:
            self.transport.write(piece)
        if last:
            self._complete()

    def _begin(self, status: int, fields: Sequence[tuple[bytes, bytes]]) -> None:
        text, length = b"", None
        for name, value in fields:
            text += b"%b: %b\r\n" % (name, value)
            if name == b"content-length":
                length = int(value)
            elif (name, value) == CLOSE_HEADER:
                self.keep_alive = False
        if text.count(b"\n") != len(fields) or not fields_are_valid(text):  # one value may not become two fields
            raise RuntimeError("a field of an answer that cannot be sent")
        if status in _BODILESS:
            length = 0
        elif length is None:
            text += b"Transfer-Encoding: chunked\r\n"
        self._head, self._left = _LINES[status] + text + b"\r\n", length
        self.response_started = True

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
