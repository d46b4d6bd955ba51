"""The connection: one WebSocket at a time, which comes back when it is lost. A dialogue goes over it."""

from __future__ import annotations

import asyncio
import contextlib

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from yap_client.dialogue import Dialogue
from yap_client.errors import (
    AuthenticationError,
    CapacityError,
    ClosedError,
    ProtocolError,
    ServerGoneError,
    YapError,
)
from yap_client.network.backoff import Backoff
from yap_client.network.handshake import CLOSE_TIMEOUT_S, open_socket
from yap_client.turn import came_within

# A connection that lasted as long was a good one: the next loss is a new misfortune.
LASTING_S = 5.0
NOT_OPENED = "the client was not opened: `async with connect(…) as talk`"


class Connection:
    """Carries a dialogue to a server and back, over one socket after the other.

    Args:
        dialogue: what is said.
        url: the server's WebSocket; may hold a key.
        key: an API key; it travels in a header.
        backoff: pauses between attempts to connect; none never connects again.
        open_timeout: seconds that a handshake may take.

    Attributes:
        socket: none between connections.
    """

    def __init__(
        self, dialogue: Dialogue, url: str, key: str | None, *, backoff: Backoff | None, open_timeout: float
    ) -> None:
        self._dialogue = dialogue
        self._url = url
        self._key = (key or "").strip()  # of a file that ends with its line, say
        self._backoff = backoff
        self._open_timeout = open_timeout
        dialogue.dead = ClosedError(NOT_OPENED)
        dialogue.flush = self._flush
        dialogue.welcomed = self._welcomed
        self._outgoing = asyncio.Event()  # set while the dialogue has texts to be sent
        self._retry = asyncio.Event()  # set when something is said while nobody tries to connect any more
        self.socket: ClientConnection | None = None
        self._keep_alive = 0.0  # seconds of silence after which a sign of life is sent
        self._lasted = False  # whether there was a socket at all
        self._entered: asyncio.Future[None] | None = None  # done when a server took the client for the first time
        self._runner: asyncio.Task[None] | None = None  # connects, and connects again

    async def open(self, keep_alive: float) -> None:
        """Connect, and stay until it is closed.

        Args:
            keep_alive: seconds of silence after which a sign of life is sent.

        Raises:
            YapError: there is no server that takes the client.
        """
        loop = asyncio.get_running_loop()
        if self._dialogue.closed or (self._runner is not None and not self._runner.done()):
            raise ClosedError("the client was opened already: `connect` makes another")
        self._dialogue.dead = None
        self._keep_alive = keep_alive
        self._outgoing, self._retry = asyncio.Event(), asyncio.Event()  # those of an attempt before are its loop's
        self._entered = loop.create_future()
        self._runner = loop.create_task(self._run(self._entered))
        try:
            await self._entered
        except BaseException:
            self._runner.cancel()
            await asyncio.wait((self._runner,))
            raise

    def awake(self) -> None:
        """Try again, where nobody does any more: something was said."""
        self._retry.set()

    async def close(self) -> None:
        """Leave the server, once the dialogue has ended."""
        runner = self._runner
        if runner is not None:
            if self.socket is None:
                runner.cancel()
            if not runner.done():  # else it may be another loop's, which is closed
                await asyncio.wait((runner,), timeout=CLOSE_TIMEOUT_S)
            if not runner.done():
                runner.cancel()
                await asyncio.wait((runner,))
            if not runner.cancelled():
                runner.result()

    def _flush(self) -> None:
        self._outgoing.set()

    def _welcomed(self) -> None:
        if self._entered is not None and not self._entered.done():
            self._entered.set_result(None)

    async def _run(self, entered: asyncio.Future[None]) -> None:
        """Converse until the client is closed or it is of no use. Whatever ends this, nobody waits for it in vain."""
        try:
            await self._stay(entered)
        except Exception as error:
            self._dialogue.give_up(ClosedError(f"the client failed: {type(error).__name__}"), for_good=True)
            if not entered.done():
                entered.set_exception(error)
            raise

    async def _stay(self, entered: asyncio.Future[None]) -> None:
        """Connect, and connect again."""
        clock = asyncio.get_running_loop().time
        dialogue, backoff = self._dialogue, self._backoff
        attempt, since = 0, clock()
        while True:
            began = clock()
            error = await self._connect_once()
            if dialogue.closed:
                return
            if dialogue.proven or (self._lasted and clock() - began >= LASTING_S):
                attempt, since = 0, clock()
            dialogue.proven = False
            hopeless = backoff is None or isinstance(error, (AuthenticationError, ProtocolError))
            # Whoever begins wants to know at once that there is no server; a full one may have a place soon.
            hopeless = hopeless or not (entered.done() or isinstance(error, CapacityError))
            pause = 0.0 if backoff is None else backoff.pause(attempt)
            if hopeless or (backoff is not None and clock() + pause > since + backoff.within):
                dialogue.give_up(error, for_good=hopeless)
                if not entered.done():
                    entered.set_exception(error)
                    return
                if hopeless:
                    return
                self._retry.clear()
                await self._retry.wait()  # the next one to say something tries again
                attempt, since = 0, clock()
            else:
                attempt += 1
                await asyncio.sleep(pause)

    async def _connect_once(self) -> YapError:
        """Open a socket and converse over it to its end; return why it ended."""
        self._lasted = False
        try:
            socket = await open_socket(self._url, self._key, self._dialogue.session.key, self._open_timeout)
        except YapError as wrong:
            return wrong
        self.socket, self._lasted = socket, True
        loop = asyncio.get_running_loop()
        writer = loop.create_task(self._write(socket))
        patience = loop.call_later(self._open_timeout, self._give_up_on, socket)
        wrong_frame: ProtocolError | None = None
        try:
            self._dialogue.connected()
            async for text in socket:
                self._dialogue.received(text)
        except ConnectionClosed:
            pass
        except ProtocolError as wrong:
            wrong_frame = wrong
        finally:
            self.socket = None
            patience.cancel()
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await socket.close()
            error = wrong_frame or self._ended(socket)
            self._dialogue.lost(str(error), socket.close_code)
        return error

    def _give_up_on(self, socket: ClientConnection) -> None:
        """Cut a connection whose server took it and says nothing."""
        if not self._dialogue.greeted:
            socket.transport.abort()

    def _ended(self, socket: ClientConnection) -> YapError:
        """Say why a connection has ended."""
        if self._dialogue.refusal is not None:
            return self._dialogue.refusal
        code, reason = socket.close_code or 1006, socket.close_reason or "no close frame"
        kind = {1008: AuthenticationError, 1013: CapacityError}.get(code, ServerGoneError)
        return kind(f"the server closed the connection: {code} {reason}")

    async def _write(self, socket: ClientConnection) -> None:
        """Send what the dialogue has to say, and a sign of life where it has nothing."""
        outgoing, texts = self._outgoing, self._dialogue.outgoing
        with contextlib.suppress(ConnectionClosed):
            while True:
                while texts:
                    await socket.send(texts.popleft())
                outgoing.clear()
                if not await came_within(self._keep_alive, outgoing):
                    await socket.send('{"type":"pong"}')
