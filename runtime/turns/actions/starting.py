"""Turns that a connection asks for begin here: the session is taken over, its old turn ends, the client is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

from runtime.deployment.models import Chat, Deployment
from runtime.turns.actions.preparing import Preparing, request_of
from runtime.turns.actions.refusing import Refusing
from runtime.turns.answer import TurnRequest, prefixed
from runtime.turns.outbox import Outbox
from runtime.turns.prepared import PreparedReply
from runtime.turns.principal import Principal
from runtime.turns.sessions.hold import SessionHold, end_turn
from runtime.turns.sessions.registry import SessionQuotaError
from runtime.turns.sessions.session import Session
from runtime.turns.sessions.stored import settle
from runtime.turns.turn import Stop, Turn
from runtime.wire import frames, messages
from runtime.wire.frames import RequestId

# How often a `start` looks again for a session that another server has just taken over.
ATTEMPTS = 3


class Starting:
    """Begins turns for one connection, one at a time: those of `start` and of `followup`.

    Attributes:
        turn: the one that began last.
        session: where that was.
    """

    def __init__(
        self,
        outbox: Outbox,
        deployment: Deployment,
        principal: Principal,
        hold: SessionHold,
        refusing: Refusing,
        preparing: Preparing,
        traceparent: str | None,
    ) -> None:
        self._outbox = outbox  # takes every answer
        self._deployment = deployment  # shared by all connections
        self._principal = principal  # whose turns they are
        self._hold = hold  # takes sessions over
        self._refusing = refusing  # tells of what is not begun
        self._preparing = preparing  # has replies that were made ahead
        self._traceparent = traceparent  # of the handshake; a message's own wins
        self.turn: Turn | None = None
        self.session: Session | None = None

    def new_turn(self, request_id: RequestId | None) -> Turn:
        """A turn that has not begun, for a message that has just come: what comes behind it may stop it already."""
        return Turn(request_id, self._outbox, self._deployment, self._principal)

    async def start(self, start: messages.Start, turn: Turn, prepared: PreparedReply | None) -> None:
        """Begin the turn of a `start`; what was prepared and is not its reply is thrown away."""
        try:
            await self._start(start, turn, prepared)
        finally:
            if prepared is not None:
                prepared.end("miss")

    async def _start(self, start: messages.Start, turn: Turn, prepared: PreparedReply | None) -> None:
        chat = self._deployment.chat
        if chat is None:
            start = replace(start, persona=None)
        elif await self._start_too_long(chat, start, prepared):
            return
        for _ in range(ATTEMPTS):
            try:
                session = self._hold.open(start.session_id)
            except SessionQuotaError:
                text = "This key has as many sessions as it may have, and all of them are in use."
                self._refusing.refuse(start, "session_quota_exceeded", text)
                return
            async with session.lock:
                news = await self._hold.load(session)
                if news and chat is not None and await self._persona_too_long(chat, session, start):
                    return
                await self._acquire_session(session)
                if session.lost:  # to another server, while this one waited
                    continue
                session.apply(start)
                settle(session, start.utterance)
                self._acknowledge("start", session, start)
                self._begin(turn, session, self._request_of(start, session, turn), start.utterance, prepared)
                return
        raise RuntimeError("other servers take the session over again and again")

    async def _persona_too_long(self, chat: Chat, session: Session, start: messages.Start) -> bool:
        """Whether the persona that another server wrote leaves no room here."""
        if start.persona is not None:
            return False
        return await self._refusing.too_long(chat, session.persona, start.runtime_text, start)

    def _request_of(self, start: messages.Start, session: Session, turn: Turn) -> TurnRequest:
        return replace(
            request_of(start, session),
            ended=lambda kept: session.remember(turn, start.utterance, kept=kept),
            traceparent=start.traceparent or self._traceparent,
        )

    async def _start_too_long(self, chat: Chat, start: messages.Start, prepared: PreparedReply | None) -> bool:
        persona = start.persona
        if persona is None:
            known = self._hold.find(start.session_id)
            persona = known.persona if known is not None else ""
        if prepared is not None and prepared.fits(persona, start.runtime_text):
            return False
        return await self._refusing.too_long(chat, persona, start.runtime_text, start)

    async def follow_up(self, followup: messages.Followup, turn: Turn) -> None:
        """Begin the turn of a `followup`, in the session that it names or this connection's own."""
        session = self._hold.active(followup.session_id) or await self._hold.fetch(followup.session_id)
        if session is None:
            self._refusing.no_session(followup)
            return
        async with session.lock:
            await self._hold.load(session)
            if not self._hold.may_use(session):  # another connection took it while this one waited
                self._refusing.no_session(followup)
                return
            if self._hold.owned() is None:
                await self._acquire_session(session)
            else:
                await self._end_own_turn()
                await end_turn(session)
            if session.lost:
                self._refusing.no_session(followup)
                return
            prefix = session.screen_checked_prefix
            words = prefixed(prefix, followup.analysis)
            settle(session, words)
            sampling, sanitize = session.sampling_with(followup.sampling)
            request = TurnRequest(
                persona=session.persona,
                runtime_text=session.runtime_text,
                history=session.history.messages(),
                utterance=followup.analysis,
                prefix=prefix,
                sampling=sampling,
                sanitize=sanitize,
                decide=False,
                ended=lambda kept: session.remember(turn, words, kept=kept),
                conversation=session.session_id,
                traceparent=followup.traceparent or self._traceparent,
            )
            self._acknowledge("followup", session, followup)
            self._begin(turn, session, request, words)

    async def _acquire_session(self, session: Session) -> None:
        """Become the session's owner. This connection's turn and the session's, if any, end first."""
        await self._end_own_turn()
        await self._hold.take(session)

    async def _end_own_turn(self) -> None:
        await self._preparing.cancelled()  # is told before the turn begins
        if self.turn is not None and not self.turn.ended:
            self.turn.stop(Stop.BARGE_IN)
            await self.turn.wait()

    def _begin(
        self, turn: Turn, session: Session, request: TurnRequest, words: str, prepared: PreparedReply | None = None
    ) -> None:
        self.turn, self.session = turn, session
        held = None
        if prepared is not None and not turn.stopping and prepared.answers(request):
            held = prepared.release()
        if prepared is not None and held is None:  # which was to make it needless
            self._deployment.wake_engine()
        self._preparing.settle(session.session_id)
        session.begin(turn, words)
        turn.when_ended(lambda: session.forget(turn))
        turn.begin(request, held)
        if held is not None:  # the rest of it; what is there has been told
            self._deployment.wake_engine()

    def _acknowledge(self, kind: str, session: Session, message: messages.Inbound) -> None:
        self._outbox.put(
            frames.Ack(
                to=kind,
                ok=True,
                session_id=session.session_id,
                now=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                gender=session.gender,
                personality=session.personality,
                chat_prompt=bool(session.persona),
                user_identity=session.user_identity,
                warning=list(message.warnings),
                request_id=message.request_id,
            )
        )
