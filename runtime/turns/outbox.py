"""The outbox: frames on their way to one socket, joined where the client reads slower than the engine writes.

`put` and `put_text` never wait. One writer takes what is there. Text of a turn that lies next to other text of the same
turn becomes one `token` frame, so that a slow reader costs the length of one reply and never a growing queue; frames of
other kinds are bounded by what the client asks for, and `above_high_water` tells the reader to wait for the writer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from runtime.wire.frames import Final, Frame, RequestId, Token

# A client that pings without reading the answers is the only one to get here: a turn has five kinds of frames.
HIGH_WATER_FRAMES = 64
# Replies may be long: with so much of them waiting no new turn is read, whatever the number of frames.
HIGH_WATER_LETTERS = 65_536
# A reply's last text waits so long for its end, which mostly comes with it. Not where the engine takes its time to let
# go, or is asked for more after all: whoever listens must not wait for that.
END_WAIT_S = 0.05


@dataclass(frozen=True, slots=True)
class Close:
    """The end of the socket: WebSocket close code and reason."""

    code: int
    reason: str


class Outbox:
    """The queue between a connection's producers of frames and its one writer."""

    __slots__ = (
        "_closed",
        "_end_wait",
        "_frames",
        "_gathering",
        "_loop",
        "_reader",
        "_text",
        "_text_request_id",
        "_weight",
        "_writer",
    )

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()  # makes futures
        self._frames: list[Frame | Close] = []  # what waits, before the text
        self._text: list[str] = []  # the pieces of one turn's reply that will be one frame
        self._text_request_id: RequestId | None = None  # that turn's
        self._weight = 0  # letters of replies in the frames that wait
        self._writer: asyncio.Future[None] | None = None  # the writer's wait for a frame
        self._reader: asyncio.Future[None] | None = None  # the reader's wait for room
        self._end_wait: asyncio.TimerHandle | None = None  # set while a last text waits for its turn's end
        self._gathering = False  # the writer is not woken
        self._closed = False  # nothing is taken any more

    @property
    def above_high_water(self) -> bool:
        """Whether so much waits that nothing more should be read."""
        full = len(self._frames) >= HIGH_WATER_FRAMES or self._weight >= HIGH_WATER_LETTERS
        return full and not self._closed

    def put(self, frame: Frame | Close) -> None:
        """Queue a frame; nothing follows a `Close`."""
        if self._closed:
            return
        self._end_last_wait()
        if self._text:
            self._weight += sum(map(len, self._text))
            self._flush_text()
        self._frames.append(frame)
        if isinstance(frame, Final):
            self._weight += len(frame.normalized_text)
        if isinstance(frame, Close):
            self.close()
        self._wake_writer()

    def put_text(self, text: str, request_id: RequestId | None, last: bool = False) -> None:
        """Queue a piece of the reply. `request_id` is the turn's; a turn's first text always follows another frame.

        With `last` the turn's end is about to follow, and both go together: the writer is not woken for the text alone,
        unless the end is late.
        """
        if self._closed:
            return
        self._text_request_id = request_id
        self._text.append(text)
        if not last:
            self._wake_writer()
        elif self._end_wait is None:
            self._end_wait = self._loop.call_later(END_WAIT_S, self._send_last_text)

    def close(self) -> None:
        """Drop whatever comes later, and let a paused reader go on."""
        self._closed = True
        self._end_last_wait()
        self._wake_reader()

    async def take(self) -> list[Frame | Close]:
        """Wait for frames and take all of them. For one writer only."""
        while not self._frames and not self._text:
            self._writer = self._loop.create_future()
            await self._writer
        return self._take()

    def gather(self) -> None:
        """Let what is put wait, up to `gathered`, which must follow before anybody waits for anything."""
        self._gathering = True

    def gathered(self, *, take: bool) -> list[Frame | Close]:
        """End `gather`. Return what has come, to be sent now, where any of it is a reply's text and the writer is idle.

        The writer takes everything else, and everything where `take` is false.
        """
        self._gathering = False
        if not self._frames and not self._text:
            return []
        if take and self._text and self._writer is not None and not self._writer.done():
            return self._take()
        self._wake_writer()
        return []

    async def below_high_water(self) -> None:
        """Wait until the outbox is below its high-water mark. For one reader only."""
        while self.above_high_water:
            self._reader = self._loop.create_future()
            await self._reader

    def _take(self) -> list[Frame | Close]:
        self._flush_text()
        frames, self._frames, self._weight = self._frames, [], 0
        self._wake_reader()
        return frames

    def _flush_text(self) -> None:
        if self._text:
            text = self._text[0] if len(self._text) == 1 else "".join(self._text)
            self._frames.append(Token(text=text, request_id=self._text_request_id))
            self._text.clear()

    def _send_last_text(self) -> None:
        self._end_wait = None
        self._wake_writer()

    def _end_last_wait(self) -> None:
        if self._end_wait is not None:
            self._end_wait.cancel()
            self._end_wait = None

    def _wake_writer(self) -> None:
        if self._writer is not None and not self._gathering and not self._writer.done():
            self._writer.set_result(None)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
