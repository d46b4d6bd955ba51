"""One request over HTTP and its answer, as far as every path under `/v1` has them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence

from starlette.types import Receive, Scope, Send

from runtime.host.supervision import watch
from runtime.server.front.direct import DirectCycle
from runtime.server.front.http import pieces_of
from runtime.wire.openai.errors import ApiError

Header = tuple[bytes, bytes]

JSON, EVENTS = b"application/json", b"text/event-stream; charset=utf-8"
# What a browser's script may see beside the body.
EXPOSED = b"x-request-id, retry-after, x-should-retry"


def new_request_id() -> str:
    """The name of a request, told in its answer."""
    return f"req_{secrets.token_hex(12)}"


def shared_with(origin: bytes | None) -> list[Header]:
    """Fields of an answer that a script of an origin may read, or no script."""
    if origin is None:
        return [(b"vary", b"origin")]
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", EXPOSED),
        (b"vary", b"origin"),
    ]


class ClientGoneError(Exception):
    """The client hung up before its request was read."""


class Exchange:
    """A request and its answer.

    Attributes:
        request_id: told in every answer.
        method: of the request.
        path: of the request, decoded.
        headers: of the request, names in small letters.
        status: of the answer; 0 before it has begun.
        error: the code of what was told instead of an answer, or in its middle. The error itself knows the frames that
            it came through, and one of them knows this.
        holder: the name of the key's holder; empty before the key is known.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive  # ASGI
        self._send = send  # ASGI
        self._pieces = pieces_of(scope)  # the shorter way for them, where there is one
        self.request_id = new_request_id()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {
            name.decode("latin-1").lower(): value.decode("utf-8", "surrogateescape") for name, value in scope["headers"]
        }
        self.status = 0
        self.error: str | None = None
        self.holder = ""
        self._allowed_origin: bytes | None = None  # whose script may read the answer

    @property
    def origin(self) -> str | None:
        """The browser's origin, where it is one."""
        return self.headers.get("origin")

    def allow_origin(self) -> None:
        """Let the browser's script read the answer."""
        if self.origin is not None:
            self._allowed_origin = self.origin.encode("utf-8", "surrogateescape")

    async def body(self) -> bytes:
        """The whole body. Its size was bounded when the head was read.

        Raises:
            ClientGoneError: it will not come.
        """
        pieces = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(pieces)

    async def gone(self) -> None:
        """Wait until the client has hung up, or has its whole answer."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def when_gone(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call something when the client has hung up, at the latest when it has its whole answer; to be ended after.

        Returns:
            what ends it.
        """
        cycle = self._pieces
        if isinstance(cycle, DirectCycle):  # needs no task
            cycle.when_lost(call)
            return cycle.forget
        task = watch("client_gone", asyncio.get_running_loop().create_task(self._call_when_gone(call)))

        def end() -> None:
            task.cancel()

        return end

    async def _call_when_gone(self, call: Callable[[], None]) -> None:
        await self.gone()
        call()

    async def begin(self, status: int, kind: bytes | None, extra: Sequence[Header] = ()) -> None:
        """Send the head of an answer; without a `kind` nothing follows it."""
        self.status = status
        headers = [(b"x-request-id", self.request_id.encode()), *extra]
        if kind is not None:
            headers.insert(0, (b"content-type", kind))
        headers += shared_with(self._allowed_origin)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, body: bytes, *, last: bool = False) -> None:
        """Send a piece of the body. Waits while the client does not read."""
        if last or self._pieces is None:
            await self._send({"type": "http.response.body", "body": body, "more_body": not last})
        else:
            await self._pieces.send_piece(body)

    async def answer(self, body: bytes, status: int = 200, extra: Sequence[Header] = (), kind: bytes = JSON) -> None:
        """Send a whole answer."""
        await self.begin(status, kind, [(b"content-length", str(len(body)).encode()), *extra])
        await self.piece(body, last=True)

    async def answer_nothing(self, extra: Sequence[Header] = ()) -> None:
        """Answer without a body: then there may be no length of one (RFC 9110, 8.6)."""
        await self.begin(204, None, extra)
        await self.piece(b"", last=True)

    async def refuse(self, error: ApiError, extra: Sequence[Header] = ()) -> None:
        """Answer with an error."""
        self.error = error.code
        headers = list(extra)
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        if error.once:
            headers.append((b"x-should-retry", b"false"))
        await self.answer(error.body(), error.status, headers)
