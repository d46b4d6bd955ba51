"""One WebSocket: a task that reads, a task that writes, and between them the handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import Receive, Send

from runtime import defaults
from runtime.host import eager_tasks, supervision
from runtime.host.supervision import attempt, watch
from runtime.host.timeouts import within
from runtime.server.front.sockets import CLOSE_DEADLINE_S
from runtime.server.quotas import Seat
from runtime.turns.actions.refusing import GOES_AWAY
from runtime.turns.message_handler import MessageHandler
from runtime.turns.outbox import Close, Outbox
from runtime.turns.turn import Stop
from runtime.wire import frames, messages
from runtime.wire.decoder import Decoder
from runtime.wire.frames import Frame
from runtime.wire.messages import Rejected
from runtime.wire.refusals import refusal, rejection


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of a connection; times in seconds.

    Attributes:
        idle_timeout: silence after which the connection is closed.
        idle_code: the close code then.
    """

    idle_timeout: float = defaults.IDLE_TIMEOUT_S
    idle_code: int = defaults.IDLE_CLOSE_CODE


class Connection:
    """An admitted client, from the handshake to the end of its socket.

    Attributes:
        close_code: the code that the socket was closed with, by either side.
        closed: set when the socket has ended.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        outbox: Outbox,
        handler: MessageHandler,
        decoder: Decoder,
        limits: ConnectionLimits,
        seat: Seat,
        abort: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve a socket that was accepted; to be made in the task that will serve it."""
        self._receive = receive  # ASGI
        self._send = send  # ASGI; for the writer alone
        self._outbox = outbox  # what the writer takes
        self._handler = handler  # gets the messages
        self._abort = abort  # ends the socket, whatever waits
        self._decoder = decoder  # shared by all connections
        # The first limits all messages but cancels and prepares, the others these.
        self._messages, self._cancels = seat.windows()
        self._prepares = seat.prepares()  # limits those
        self._idle_timeout = limits.idle_timeout  # seconds
        self._idle_code = limits.idle_code  # close code
        self._loop = asyncio.get_running_loop()  # the one that serves it
        self._last_inbound = self._loop.time()  # loop time of the last frame
        self._reader = asyncio.current_task()  # the task that serves it
        self._sending: asyncio.Future[bool] | None = None  # set while a reply that was ready waits for the socket
        self._closing: asyncio.Task[None] | None = None  # set once it is being closed; no message is read then
        self._draining: asyncio.Task[None] | None = None  # set once the server drains; no turn begins then
        self._drain_deadline = 0.0  # loop time at which draining ends
        self._abort_timer: asyncio.TimerHandle | None = None  # ends the wait for a peer that is gone
        self._aborted = False  # the reader was cancelled by ourselves
        self.close_code = frames.CLOSE_ABNORMAL
        self.closed = asyncio.Event()

    async def serve(self, on_end: Callable[[], None]) -> None:
        """Read until the socket ends, whoever ends it, then call `on_end` at once, and leave nothing behind."""
        writer = watch("connection_writer", self._loop.create_task(self._write()))
        self._idle_timer = self._loop.call_later(self._idle_timeout, self._check_idle)
        try:
            await self._read()
        except asyncio.CancelledError:
            if self._closing is None and not self._aborted:  # otherwise it is our own time-out for a peer that is gone
                raise
        finally:
            attempt("connection_end", on_end)
            self.closed.set()
            self._outbox.close()
            tasks = writer, self._sending, self._draining, self._closing
            for running in (self._idle_timer, self._abort_timer, *tasks):
                if running is not None:
                    running.cancel()
            await self._handler.close(Stop.DISCONNECT)

    def close(self, code: int, reason: str, last: Frame | None = None, why: Stop = Stop.DISCONNECT) -> None:
        """End what runs, send a last frame, close the socket. What comes in from now on is ignored."""
        if self._closing is None:
            self._closing = watch("connection_close", self._loop.create_task(self._close(code, reason, last, why)))

    def drain(self, seconds: float) -> None:
        """Say that the server goes away, and close when no turn runs, after `seconds` at the latest."""
        if self._draining is None and self._closing is None:
            self._drain_deadline = self._loop.time() + seconds
            self._outbox.put(frames.Draining(deadline_s=round(seconds)))
            self._handler.drain()
            self._draining = watch("connection_drain", self._loop.create_task(self._drain(seconds)))

    async def _drain(self, seconds: float) -> None:
        try:
            await within(seconds, self._handler.wait_until_idle())
        except asyncio.TimeoutError:
            pass
        except Exception as error:  # noqa: BLE001 - it must be closed all the same
            supervision.report("connection_drain", error)
        self.close(frames.CLOSE_GOING_AWAY, "draining")

    async def _close(self, code: int, reason: str, last: Frame | None, why: Stop) -> None:
        self._abort_timer = self._loop.call_later(CLOSE_DEADLINE_S, self._abort_reader)
        try:
            await self._handler.close(why)
            await self._handler.saved()  # whoever comes back elsewhere finds all of it there
        finally:
            if last is not None:
                self._outbox.put(last)
            self.close_code = code
            self._outbox.put(Close(code, reason))

    def _abort_reader(self) -> None:
        self._aborted = True
        self._abort()
        if self._reader is not None:
            self._reader.cancel()

    # The reader

    async def _read(self) -> None:
        receive, outbox = self._receive, self._outbox
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                if self.close_code == frames.CLOSE_ABNORMAL:
                    self.close_code = message.get("code") or frames.CLOSE_ABNORMAL
                return
            self._last_inbound = self._loop.time()
            outbox.gather()
            try:
                self._on_message(message.get("text"))
            finally:
                ready = outbox.gathered(take=self._sending is None)
            if ready:
                self._send_now(ready)
            if outbox.above_high_water:
                await outbox.below_high_water()

    def _on_message(self, text: str | None) -> None:
        """Act on one frame, without waiting for anything."""
        if self._closing is not None:
            return
        try:
            if text is None:
                raise Rejected("invalid_message", "expected one JSON object in a text frame, found a binary frame")
            message = self._decoder.decode(text)
        except Rejected as rejected:
            prepare = rejected.kind == "prepare"
            if retry := (self._prepares if prepare else self._messages).take():
                rejected.limit(retry, "prepare_rate_limited" if prepare else "message_rate_limited")
            self._outbox.put(rejection(rejected))
            return
        request_id = message.request_id
        match message:
            case messages.Ping():
                self._outbox.put(frames.Pong(request_id=request_id))
            case messages.Pong():
                pass
            case messages.Heard():
                self._handler.apply_heard(message)
            case messages.Cancel():
                if retry := self._cancels.take():
                    # Whoever says stop is not talked on to, how often they said so.
                    self._handler.stop(Stop.CANCEL)
                    self._refuse_limited(message, "cancel_rate_limited", retry)
                else:
                    self._handler.cancel(request_id)
            case messages.End():
                closed = frames.ConnectionClosed(reason="client_request", request_id=request_id)
                self.close(frames.CLOSE_NORMAL, "client_request", closed)
            case _ if self._draining is not None:
                self._outbox.put(refusal(message, "draining", GOES_AWAY))
            case messages.Prepare() if retry := self._prepares.take():
                self._refuse_limited(message, "prepare_rate_limited", retry)
            case messages.Prepare():
                self._handler.submit(message)
            case _:
                if retry := self._messages.take():
                    self._handler.refuse_turn(message)
                    self._refuse_limited(message, "message_rate_limited", retry)
                else:
                    self._handler.submit(message)

    def _refuse_limited(self, message: messages.Inbound, code: str, retry: int) -> None:
        self._outbox.put(refusal(message, code, f"Too many messages; try again in {retry} s.", retry))

    def _check_idle(self) -> None:
        """Close when silence has lasted long enough, else look again when it could have. One timer, moved rarely."""
        now = self._loop.time()
        since = now if self._handler.busy else max(self._last_inbound, self._handler.idle_since)
        if now - since >= self._idle_timeout:
            self.close(self._idle_code, "idle_timeout")
        else:
            self._idle_timer = self._loop.call_at(since + self._idle_timeout, self._check_idle)

    # The writer

    async def _write(self) -> None:
        """Send what there is. `send` waits while the socket's buffer is full; meanwhile the outbox joins text."""
        take = self._outbox.take
        try:
            while True:
                taken = await take()
                if self._sending is not None:
                    await asyncio.wait((self._sending,))
                if not await self._send_all(taken):
                    return
        finally:
            self._outbox.close()

    def _send_now(self, ready: Sequence[Frame | Close]) -> None:
        """Send a reply that was ready, with no step of the loop between. Where the socket is full, the writer waits."""
        sending = eager_tasks.start(self._send_all(ready))
        if not sending.done():
            self._sending = sending
            sending.add_done_callback(self._sent)

    def _sent(self, sending: asyncio.Future[bool]) -> None:
        self._sending = None

    async def _send_all(self, taken: Sequence[Frame | Close]) -> bool:
        """Send frames. False: nothing can follow them.

        Those that are there together go to the socket together, where the server knows of `more`.
        """
        send, encode = self._send, frames.encode
        try:
            if len(taken) == 1 and not isinstance(frame := taken[0], Close):  # a token, nearly always
                await send({"type": "websocket.send", "text": encode(frame)})
                return True
            end = len(taken) - 1
            for number, frame in enumerate(taken):
                if isinstance(frame, Close):
                    await send({"type": "websocket.close", "code": frame.code, "reason": frame.reason})
                    break
                if number < end and not isinstance(taken[number + 1], Close):
                    await send({"type": "websocket.send", "text": encode(frame), "more": True})
                    continue
                await send({"type": "websocket.send", "text": encode(frame)})
            else:
                return True
        except OSError:
            pass  # the peer is gone; the reader is told so by the server
        except Exception as error:  # noqa: BLE001 - who cannot be answered any more must not wait for it
            supervision.report("connection_writer", error)
            self._abort_reader()
        self._outbox.close()
        return False
