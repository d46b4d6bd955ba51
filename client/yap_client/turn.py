"""A turn as its listener has it: an iterator over its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from yap_client.dialogue import Dialogue
from yap_client.dialogue.exchanges import TurnState
from yap_client.errors import ServerGoneError, YapError
from yap_client.events import Done, Interrupted, Token, TurnEvent, Usage


async def came_within(seconds: float | None, event: asyncio.Event) -> bool:
    """Wait for an event for so long; tell whether it came. The event is set afterwards in any case.

    Not `wait_for`: before Python 3.12 it can swallow a cancellation.
    """
    if seconds is None:
        return await event.wait()
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = not event.is_set()
        event.set()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        await event.wait()
    finally:
        timer.cancel()
    return not expired


class Turn:
    """One turn: `async for event in turn` yields its events as they come.

    The last event is `Done` or `Interrupted`, exactly one of them; a turn that the server refuses raises instead. Who
    leaves the loop early, by `break`, an exception or a cancelled task, ends the turn on the server.

    Attributes:
        text: the reply so far, as far as its events were taken.
        usage: what it cost; none before its end, and where it was cut short.
        ended: the last event; none before.
    """

    def __init__(self, dialogue: Dialogue, state: TurnState, silence: float | None) -> None:
        self._dialogue = dialogue  # that it is a part of
        self._state = state  # what has come
        self._silence = silence  # seconds without an event after which the server counts as gone
        self._came = asyncio.Event()  # set when anything has
        state.wake = self._came.set
        self._raised = False  # whether its error was told
        self._gone: ServerGoneError | None = None  # that nothing came for so long
        self.text = ""
        self.ended: Done | Interrupted | None = None

    @property
    def request_id(self) -> str:
        """The id that every event of the turn carries."""
        return self._state.id

    @property
    def usage(self) -> Usage | None:
        """What the turn cost."""
        return self.ended.usage if isinstance(self.ended, Done) else None

    @property
    def over(self) -> bool:
        """Whether the server has nothing more to say in it; its events may still wait to be taken."""
        return self._state.over

    def cancel(self) -> None:
        """End the turn at once; its last event follows when the engine has let go. Nothing, when it is over."""
        self._dialogue.cancel(self._state)

    async def aclose(self) -> None:
        """End the turn, for who listens no longer."""
        self.cancel()

    async def wait(self) -> None:
        """Wait until the turn is over, and take nothing."""
        while not self._state.over:
            await self._wait()

    async def reply(self) -> str:
        """Take all events, and return the whole text. Asked again, it says the same again.

        Raises:
            YapError: there is no whole reply: the turn was refused, failed, or was cut short.
        """
        async for _ in self:
            pass
        if error := self._state.error or self._gone:
            raise error
        if isinstance(self.ended, Done) and self.ended.usage is not None:
            return self.text
        ended = self.ended
        why = "interrupted" if isinstance(ended, Interrupted) else "failed" if ended and ended.failed else "cancelled"
        raise YapError(f"the turn was {why}" if why != "failed" else "the turn failed")

    async def _wait(self) -> None:
        self._came.clear()
        if not await came_within(self._silence, self._came):
            self.cancel()
            self._gone = ServerGoneError(f"expected an event within {self._silence:g} s, got none")
            raise self._gone

    async def __anext__(self) -> TurnEvent:
        state = self._state
        while not state.events:
            if state.over:
                if state.error is not None and not self._raised:
                    self._raised = True
                    raise state.error
                raise StopAsyncIteration
            await self._wait()
        event = state.events.popleft()
        if isinstance(event, Token):
            self.text += event.text
        elif isinstance(event, (Done, Interrupted)):
            self.ended = event
        return event

    async def __aiter__(self) -> AsyncIterator[TurnEvent]:
        # A generator for each loop: it is closed also where the loop is left and somebody still holds the turn.
        try:
            while True:
                try:
                    event = await self.__anext__()
                except StopAsyncIteration:
                    return
                yield event
        finally:
            self.cancel()

    async def __aenter__(self) -> Turn:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
