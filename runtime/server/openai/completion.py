"""A completion: one turn whose frames become an answer over HTTP, in one piece or in a stream.

The turn is the same as a WebSocket's, and so is the outbox between it and the writer: text that a slow client has not
taken is joined. What differs is how frames are written, and that nothing is kept of it afterwards.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence

from runtime.server.openai.exchange import EVENTS, Exchange
from runtime.turns.answer import TurnRequest
from runtime.turns.outbox import Outbox
from runtime.turns.turn import Stop, Turn
from runtime.wire import frames
from runtime.wire.frames import Frame, Usage
from runtime.wire.openai import answers
from runtime.wire.openai.answers import Chunks, Heading, ToolCall
from runtime.wire.openai.errors import ApiError

# Of a stream: not to be kept, nor held back by a proxy (nginx's own word for it).
STREAMED = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))

# Seconds that a client has for the rest of an answer which the server ends: less than the service waits for that.
LAST_WORDS_S = 1.0

# Why the server ended a turn, as the client is told.
_ENDED = {
    "draining": (503, "The server goes away; send this again.", "draining", 1),
    "engine_died": (503, "The engine died; the server starts again.", "engine_died", 5),
    "key_removed": (401, "The API key was taken away.", "invalid_api_key", None),
}


class Completion:
    """One admitted request.

    Attributes:
        closed: set when its answer was sent, or nobody waits for it any more.
    """

    def __init__(
        self,
        exchange: Exchange,
        turn: Turn,
        outbox: Outbox,
        heading: Heading,
        *,
        one_call: bool,
        abort: Callable[[], None],
        patience: float,
    ) -> None:
        """Answer `exchange` with what `turn` puts into `outbox`; to be made in the task that will serve it.

        Args:
            exchange: the request.
            turn: not begun.
            outbox: the turn's.
            heading: what the answer begins with.
            one_call: whether only the first tool is called.
            abort: ends the socket.
            patience: seconds that the client has to take the rest of an answer that is complete.
        """
        self._exchange = exchange
        self._turn = turn
        self._outbox = outbox
        self._heading = heading
        self._one_call = one_call
        self._abort = abort
        self._patience = patience
        self._loop = asyncio.get_running_loop()  # makes timers
        self._ended_for: str | None = None  # why the server ended the turn
        self._draining: asyncio.TimerHandle | None = None  # ends the turn, once the server drains
        self._last_call: asyncio.TimerHandle | None = None  # ends the socket, once the turn has ended
        self.closed = asyncio.Event()

    async def serve(self, request: TurnRequest, *, chunks: Chunks | None) -> None:
        """Run the turn and answer: with `chunks` as a stream. The engine holds nothing of it when this returns."""
        unwatch = self._exchange.when_gone(self._on_gone)
        self._turn.when_ended(self._on_turn_ended)
        try:
            if self._ended_for is None:
                self._turn.begin(request)
                await (self._write_whole() if chunks is None else self._write_stream(chunks))
            else:
                await self._refuse(self._failure(None))
        except OSError:
            pass  # the client is gone
        finally:
            unwatch()
            self._turn.stop(Stop.DISCONNECT)
            if self._turn.begun:
                await self._turn.wait()
            self._outbox.close()
            for timer in (self._draining, self._last_call):
                if timer is not None:
                    timer.cancel()
            self.closed.set()

    # As the service ends connections

    def close(self, code: int, reason: str, last: Frame | None = None, why: Stop = Stop.DISCONNECT) -> None:
        """End the turn and say why; `code` and `last` are a WebSocket's."""
        self.end(reason, why)

    def end(self, reason: str, why: Stop = Stop.DISCONNECT) -> None:
        """End the turn, and say why."""
        if self._ended_for is None:
            self._ended_for = reason
            self._turn.stop(why)
            if not self.closed.is_set():
                self._call_last(LAST_WORDS_S)

    def drain(self, seconds: float) -> None:
        """Let the reply go on for so many seconds."""
        if self._draining is None:
            self._draining = self._loop.call_later(seconds, self.end, "draining")

    # Who waits for the answer

    def _on_gone(self) -> None:
        self._turn.stop(Stop.DISCONNECT)

    def _on_turn_ended(self) -> None:
        """Give the client its last deadline: a slot is not for those who do not read."""
        if not self.closed.is_set() and self._ended_for is None:
            self._call_last(self._patience)

    def _call_last(self, seconds: float) -> None:
        if self._last_call is not None:
            self._last_call.cancel()
        self._last_call = self._loop.call_later(seconds, self._abort)

    # The writers

    async def _write_whole(self) -> None:
        await self._turn.wait()
        text, failed = "", None
        calls: tuple[ToolCall, ...] = ()
        for frame in await self._outbox.take():
            if isinstance(frame, frames.Final):
                text = frame.normalized_text
            elif isinstance(frame, frames.ToolCall):
                calls = self._calls(frame, numbered=False)
            elif isinstance(frame, frames.Error):
                failed = frame
            elif isinstance(frame, frames.Done):
                if frame.usage is None:
                    await self._refuse(self._failure(failed))
                else:
                    await self._exchange.answer(answers.whole(self._heading, text, calls, frame.usage))

    async def _write_stream(self, chunks: Chunks) -> None:
        """Send what there is as one piece: the client takes it apart."""
        take, piece, text_chunk = self._outbox.take, self._exchange.piece, chunks.text
        begun, called, failed = False, False, None
        while True:
            pieces: list[bytes] = []
            done: frames.Done | None = None
            for frame in await take():
                if isinstance(frame, frames.Token):
                    pieces.append(text_chunk(frame.text))
                elif isinstance(frame, frames.ToolCall):
                    if calls := self._calls(frame, numbered=True):
                        called = True
                        pieces += map(chunks.call, calls)
                elif isinstance(frame, frames.Error):
                    failed = frame
                elif isinstance(frame, frames.Done):
                    done = frame
            if done is not None and done.usage is None:
                return await self._fail_stream(self._failure(failed), pieces, begun=begun)
            if done is not None and done.usage is not None:
                pieces.append(chunks.end(_reason(done.usage, called=called), done.usage))
            if not begun and pieces:
                begun = True
                await self._exchange.begin(200, EVENTS, STREAMED)
                pieces.insert(0, chunks.role(calls=called))
            if pieces:
                await piece(b"".join(pieces), last=done is not None)
            if done is not None:
                return None

    def _calls(self, frame: frames.ToolCall, *, numbered: bool) -> tuple[ToolCall, ...]:
        names = [str(call["name"]) for call in frame.raw]
        return tuple(
            ToolCall.of(name, f"call_{secrets.token_hex(12)}", index if numbered else None)
            for index, name in enumerate(names[:1] if self._one_call else names)
        )

    # What is not a reply

    def _failure(self, frame: frames.Error | None) -> ApiError | None:
        """Why there is no reply, or no more of it; none where the client hung up."""
        if self._ended_for in _ENDED:
            status, message, code, retry_after = _ENDED[self._ended_for]
            return ApiError(status, message, code=code, retry_after=retry_after)
        if frame is None:
            return None
        # Whoever timed out once would wait as long again.
        timeout = frame.error_code == "generation_timeout"
        return ApiError(504 if timeout else 500, frame.message, code=frame.error_code, once=timeout)

    async def _refuse(self, error: ApiError | None) -> None:
        if error is not None:
            await self._exchange.refuse(error)

    async def _fail_stream(self, error: ApiError | None, pieces: Sequence[bytes], *, begun: bool) -> None:
        """Say what was said, then why nothing follows; as a status where nothing was said."""
        if not begun:
            return await self._refuse(error)
        if error is not None:
            self._exchange.error = error.code
            event = b"data: " + error.body() + b"\n\n"
            await self._exchange.piece(b"".join([*pieces, event]), last=True)
        return None


def _reason(usage: Usage, *, called: bool) -> str:
    return "tool_calls" if called else usage.finish_reason
