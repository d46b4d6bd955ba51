"""What a connection has prepared: one reply at a time, for the `start` that is to come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from runtime.deployment.models import Deployment
from runtime.turns.actions.refusing import Refusing
from runtime.turns.answer import TurnRequest
from runtime.turns.prepared import PreparedReplies, PreparedReply
from runtime.turns.principal import Principal
from runtime.turns.sessions.hold import SessionHold
from runtime.turns.sessions.session import Session
from runtime.wire import messages


def request_of(start: messages.Start, session: Session) -> TurnRequest:
    """What a `start` asks of a session that it has been applied to; nobody is told of its end yet."""
    return TurnRequest(
        persona=session.persona,
        runtime_text=session.runtime_text,
        history=session.history.messages(),
        utterance=start.utterance,
        prefix=session.check_screen_prefix,
        sampling=session.sampling,
        sanitize=session.sanitize,
        decide=True,
        ended=_nothing,
        conversation=session.session_id,
    )


class Preparing:
    """Prepares replies for one connection. The newest counts, in whatever session it is."""

    def __init__(
        self,
        deployment: Deployment,
        principal: Principal,
        hold: SessionHold,
        refusing: Refusing,
    ) -> None:
        self._deployment = deployment  # shared by all turns
        self._principal = principal  # whose replies they are
        self._hold = hold  # finds sessions
        self._refusing = refusing  # tells of errors
        self._newest: PreparedReply | None = None  # none where a `start` has come for it
        self._open: set[PreparedReply] = set()  # those that are not over, and those that a `start` will decide on
        self._ending: set[asyncio.Future[None]] = set()  # tasks of those that were thrown away
        self._cancelling: set[asyncio.Future[None]] = set()  # those whose end a `cancel` tells

    @property
    def replies(self) -> PreparedReplies:
        """Those of all connections."""
        return self._hold.prepared

    def announce(self, message: messages.Prepare) -> PreparedReply:
        """Know of a `prepare` as soon as it has come: what comes behind it may end it before its turn comes."""
        self.end("replaced")
        code, text = "generation_failed", "The reply could not be prepared."
        prepared = PreparedReply(self._deployment, self._principal, lambda: self._refusing.refuse(message, code, text))
        self._newest = prepared
        self._open.add(prepared)
        return prepared

    async def prepare(self, message: messages.Prepare, prepared: PreparedReply) -> None:
        """Begin to make the reply, from the session as it is now. Nothing of the session changes."""
        self._forget_over()
        if prepared.over:
            return
        start, chat = message.start, self._deployment.chat
        if chat is None:
            start = replace(start, persona=None)
        try:
            request = request_of(start, self._hold.glance(start.session_id).preview(start))

            async def refused() -> bool:
                return chat is not None and await self._refusing.too_long(
                    chat, request.persona, request.runtime_text, message
                )

            place = (self._principal, start.session_id)
            self.replies.put(place, prepared)
            prepared.begin(request, refused)
        except BaseException:
            prepared.end("failed")
            raise
        making, replies = prepared.making, self.replies
        if making is None or making.done():
            replies.forget(place, prepared)
            return
        self._ending.add(making)
        making.add_done_callback(self._ending.discard)
        making.add_done_callback(lambda _: replies.forget(place, prepared))

    def take(self) -> PreparedReply | None:
        """The newest, for a `start` that has just come and will decide on it."""
        newest, self._newest = self._newest, None
        return newest

    def settle(self, session_id: str) -> None:
        """A turn begins in a session: what any connection had prepared there, and was not released, is of no use."""
        self.replies.end((self._principal, session_id), "miss")

    def end(self, outcome: str) -> asyncio.Future[None] | None:
        """Throw away what is held; return what is still to be waited for until the engine holds nothing of it."""
        newest = self.take()
        if newest is None or newest.over:
            return None
        newest.end(outcome)
        self._forget_over()
        making = newest.making
        return making if making is not None and not making.done() else None

    def cancel(self, tell: Callable[[], None]) -> None:
        """Throw away what is held, and tell when the engine holds nothing of it."""
        making = self.end("ended")
        if making is None:
            tell()
            return
        self._cancelling.add(making)
        making.add_done_callback(lambda _: tell())
        making.add_done_callback(self._cancelling.discard)

    async def cancelled(self) -> None:
        """Wait until every `cancel` has been told."""
        if self._cancelling:
            await asyncio.wait(set(self._cancelling))

    async def close(self) -> None:
        """Throw away everything, and wait until the engine holds nothing of it."""
        self._newest = None
        for prepared in self._open:
            prepared.end("ended")
        self._open.clear()
        if self._ending:
            await asyncio.wait(set(self._ending))

    def _forget_over(self) -> None:
        self._open = {prepared for prepared in self._open if not prepared.over}


def _nothing(kept: bool) -> None:
    pass
