"""Several conversations with one server, for frameworks that may ask for several replies at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from yap_client.arguments import Sampling
from yap_client.errors import ClosedError
from yap_client.frameworks.context import Context
from yap_client.frameworks.conversation import Conversation
from yap_client.talk import Talk
from yap_client.turn import came_within

# A reply that is given up while the next one is asked for takes a few steps of the loop to end. To wait for it is
# cheaper than another connection.
GRACE_S = 0.05


class Conversations:
    """Conversations that are lent to one reply each. Connections are opened when they are needed, and kept.

    Args:
        connect: makes a talk that was not entered yet.
        prefix: as for `Conversation`.
        most: so many at once.
    """

    def __init__(self, connect: Callable[[], Talk], *, prefix: str = "", most: int = 4) -> None:
        self._connect = connect
        self._prefix = prefix
        self._most = most
        self._slots = asyncio.Semaphore(most)  # one for each reply
        self._idle: list[Conversation] = []  # the one that was used last is the last
        self._lent = 0  # conversations that are in use, or on their way
        self._given = asyncio.Event()  # set when one comes back
        self._warming: asyncio.Event | None = None  # set when the one that is opened ahead is there, or will not be
        self._closed = False  # whether no more are lent

    async def open(self) -> None:
        """Have a connection before it is needed."""
        if self._idle or self._lent or self._warming is not None:
            return
        self._warming = asyncio.Event()
        try:
            await self._give(await self._open())
        finally:
            self._warming.set()
            self._warming = None

    @asynccontextmanager
    async def lease(self, context: Context, sampling: Sampling) -> AsyncIterator[Conversation]:
        """Lend a conversation for one reply: the one that has what was said before, where there is such a one."""
        async with self._slots:
            self._lent += 1
            try:
                conversation = await self._take(context, sampling)
            except BaseException:
                self._lent -= 1
                raise
            try:
                yield conversation
            finally:
                self._lent -= 1
                await self._give(conversation)

    async def close(self) -> None:
        """Leave the server."""
        self._closed = True
        idle, self._idle = self._idle, []
        for conversation in idle:
            await conversation.talk.close()

    async def _take(self, context: Context, sampling: Sampling) -> Conversation:
        if not self._idle and self._warming is not None:
            await self._warming.wait()
        if not self._idle and self._lent > 1:
            self._given.clear()
            await came_within(GRACE_S, self._given)
        for each in [each for each in self._idle if each.talk.gone is not None]:  # it was lost while nobody spoke
            self._idle.remove(each)
            await each.talk.close()
        able = [each for each in self._idle if each.can_draw(sampling)]
        fitting = [each for each in able if each.fits(context)]
        if able:
            found = fitting[-1] if fitting else able[0]
            self._idle.remove(found)
            return found
        if self._idle and self._lent + len(self._idle) > self._most:
            await self._idle.pop(0).talk.close()
        return await self._open()

    async def _open(self) -> Conversation:
        if self._closed:
            raise ClosedError("the client is closed")
        return Conversation(await self._connect().__aenter__(), self._prefix)

    async def _give(self, conversation: Conversation) -> None:
        if self._closed or conversation.talk.gone is not None:
            await conversation.talk.close()
        else:
            self._idle.append(conversation)
            self._given.set()
