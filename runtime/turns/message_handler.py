"""The message handler: does what a client's messages ask, in their order. Messages come in, frames go to the outbox.

`cancel` and `heard` act at once. Everything else goes through the work queue. Turns and prefills run beside it.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timezone

import structlog

from runtime.deployment.models import Chat, Deployment
from runtime.turns.answer import TurnRequest, prefixed
from runtime.turns.between_turns import BetweenTurns
from runtime.turns.outbox import Outbox
from runtime.turns.prepared import PreparedReply
from runtime.turns.preparing import Preparing, request_of
from runtime.turns.principal import Principal
from runtime.turns.refusing import GOES_AWAY, Refusing
from runtime.turns.sessions.heard import heard_chars
from runtime.turns.sessions.hold import SessionHold, end_turn
from runtime.turns.sessions.registry import SessionQuotaError, SessionRegistry
from runtime.turns.sessions.session import Session
from runtime.turns.sessions.stored import settle
from runtime.turns.turn import Stop, Turn
from runtime.turns.warming import Warming
from runtime.turns.work_queue import QueuedMessage, WorkQueue
from runtime.wire import frames, messages
from runtime.wire.frames import RequestId
from runtime.wire.messages import Rejected
from runtime.wire.refusals import rejection

log = structlog.get_logger(__name__)

# How often a `start` looks again for a session that another server has just taken over.
ATTEMPTS = 3


class MessageHandler:
    """Handles one connection's messages: holds its session, its turn, and the messages that wait."""

    def __init__(
        self,
        principal: Principal,
        outbox: Outbox,
        deployment: Deployment,
        sessions: SessionRegistry,
        traceparent: str | None = None,
    ) -> None:
        self._traceparent = traceparent  # of the handshake; a message's own wins
        self._principal = principal  # whose key the client has; sessions belong to it
        self._outbox = outbox  # takes every answer
        self._deployment = deployment  # shared by all connections
        self._hold = SessionHold(principal, sessions, object())  # its session; the owner is no cycle of ours
        self._turn: Turn | None = None  # the one that began last
        self._turn_session: Session | None = None  # where that was
        self._queue = WorkQueue(self._failed, self._finish)  # what waits
        self._draining = False  # nothing new is begun
        self._cancelling: set[asyncio.Future[None]] = set()  # prepared replies whose end a `cancel` tells
        self._warming = Warming(outbox, deployment, principal)  # prefills, beside the worker
        self._refusing = Refusing(principal, outbox)  # answers what is not done
        # Makes replies before their `start`.
        self._preparing = Preparing(deployment, principal, self._hold, self._refusing)
        # Does what begins no turn.
        self._between = BetweenTurns(outbox, deployment, self._hold, self._warming, self._refusing)

    @property
    def busy(self) -> bool:
        """Whether anything that the client asked for is not done: a turn, a prefill, a message that waits."""
        return bool(self._queue.entries or self._warming.tasks or self._open_turns())

    @property
    def idle_since(self) -> float:
        """Loop time at which the last of it was done."""
        turn_ended = self._turn.ended_at if self._turn is not None else 0.0
        return max(turn_ended, self._warming.ended_at, self._queue.worked_at)

    def submit(self, message: messages.Inbound) -> None:
        """Take a message that is no `cancel`; its answers come through the outbox."""
        if self._deployment.chat is None and not isinstance(message, (messages.Start, messages.Prepare)):
            self._refusing.refuse(message, "chat_not_deployed", "This server has no chat model.")
            return
        if self._queue.full:
            self.refuse_turn(message)
            self._refusing.refuse(message, "message_rate_limited", "Too many messages wait; try again in 1 s.", 1)
            return
        self._queue.put(self._queued(message))

    def cancel(self, request_id: RequestId | None) -> None:
        """Stop what runs and what is about to; answered with `done`, also when that is nothing."""
        self._deployment.metrics.cancelled()
        turns = self._open_turns()
        for turn in turns[:-1]:
            turn.stop(Stop.CANCEL)
        prepared = self._preparing.end("ended")
        if turns:
            turns[-1].cancel(request_id)
            return
        answer = frames.Done(cancelled=True, request_id=request_id)
        if prepared is None:
            self._outbox.put(answer)
        else:
            outbox, cancelling = self._outbox, self._cancelling
            cancelling.add(prepared)
            prepared.add_done_callback(lambda _: outbox.put(answer))
            prepared.add_done_callback(cancelling.discard)

    def refuse_turn(self, message: messages.Inbound) -> None:
        """Do of a message that comes too early what cannot wait: whoever wants a new turn does not hear the old one."""
        if isinstance(message, (messages.Start, messages.Followup)):
            self.stop(Stop.BARGE_IN)

    def apply_heard(self, message: messages.Heard) -> None:
        """Cut a reply in the history to what was heard of it. At once, since a turn that waits would be too late."""
        if self._deployment.chat is None:
            self._refusing.refuse(message, "chat_not_deployed", "This server has no chat model.")
            return
        if message.session_id is None:
            self._cut(self._turn_session, message)
        elif not self._hold.elsewhere(message.session_id):
            self._cut(self._hold.active(message.session_id), message)
        elif self._queue.full:
            self._refusing.refuse(message, "message_rate_limited", "Too many messages wait; try again in 1 s.", 1)
        else:
            self._queue.put(QueuedMessage(lambda: self._cut_elsewhere(message), message))

    async def _cut_elsewhere(self, message: messages.Heard) -> None:
        """Cut a reply that another server may have said."""
        session = self._hold.active(message.session_id) or await self._hold.fetch(message.session_id)
        if session is not None:
            async with session.lock:
                await self._hold.load(session)
        self._cut(session, message)

    def _cut(self, session: Session | None, message: messages.Heard) -> None:
        if session is None or session.lost or not self._hold.may_use(session):
            self._refusing.no_session(message)
            return
        turn = session.turn if session.turn is not None and not session.turn.ended else None
        reply = turn or session.last_reply
        if reply is None or message.request_id not in (None, reply.request_id):
            text = "No such reply can be cut: it is not this session's last, or the next turn has begun."
            self._refusing.refuse(message, "no_such_reply", text)
            return
        try:
            chars = heard_chars(message, reply.said)
        except Rejected as rejected:
            self._outbox.put(rejection(rejected))
            return
        if turn is not None:
            turn.heard = chars
        else:
            session.cut(chars)
        self._outbox.put(
            frames.HeardAck(
                to="heard",
                ok=True,
                session_id=session.session_id,
                chars=chars,
                warning=list(message.warnings),
                request_id=message.request_id,
            )
        )

    def stop(self, why: Stop) -> None:
        """Stop all turns, without waiting."""
        for turn in self._open_turns():
            turn.stop(why)
        if why is not Stop.BARGE_IN:  # who speaks on may come to say what was prepared for
            self._preparing.end("ended")

    def drain(self) -> None:
        """End the prefills, which are for turns that will not come. What was asked for before goes on."""
        self._draining = self._between.draining = True
        self._warming.refuse("draining", GOES_AWAY)
        self._preparing.end("ended")

    async def wait_until_idle(self) -> None:
        """Wait until no turn runs or is about to, and no message waits."""
        while True:
            if turns := self._open_turns():
                await turns[-1].wait()
            elif not await self._queue.wait():
                return

    async def saved(self) -> None:
        """Wait, not for long, until what has changed in this connection's session is in the store, if there is one."""
        await self._hold.saved()

    async def close(self, why: Stop) -> None:
        """Stop everything and wait until the engine holds nothing of it; give the session back."""
        self._hold.release()
        self._refuse_rest(why)
        self.stop(why)
        await self._queue.stop()
        await self._warming.close()
        await self._preparing.close()
        if self._turn is not None:
            await self._turn.wait()
        self._queue.clear()
        await self.wait_until_idle()

    def _refuse_rest(self, why: Stop) -> None:
        """Answer what will not be done any more, where the server is to blame for that."""
        if why is Stop.ENGINE_DEAD:
            code, text = "generation_failed", "The engine died."
        elif self._draining:
            code, text = "draining", GOES_AWAY
        else:
            return
        self._warming.refuse(code, text)
        for entry in self._queue.entries:
            if entry.turn is None or not entry.turn.begun:
                self._refusing.refuse(entry.message, code, text)

    def _open_turns(self) -> list[Turn]:
        turns = [self._turn, *(entry.turn for entry in self._queue.entries)]
        return [turn for turn in dict.fromkeys(turns) if turn is not None and not turn.ended]

    # What the queue asks

    def _queued(self, message: messages.Inbound) -> QueuedMessage:
        request_id = message.request_id
        match message:
            case messages.Start():
                turn = self._new_turn(request_id)
                prepared = self._preparing.take()
                if prepared is None:
                    self._wake_engine()
                return QueuedMessage(lambda: self._start_or_forget(message, turn, prepared), message, turn)
            case messages.Prepare():
                announced = self._preparing.announce(message)
                self._wake_engine()
                return QueuedMessage(lambda: self._preparing.prepare(message, announced), message)
            case messages.Followup():
                self._preparing.end("ended")
                turn = self._new_turn(request_id)
                self._wake_engine()
                return QueuedMessage(lambda: self._follow_up(message, turn), message, turn)
            case messages.ChatPrompt():
                return QueuedMessage(lambda: self._between.set_persona(message), message)
            case messages.WarmPersona():
                return QueuedMessage(lambda: self._between.warm_persona(message), message)
            case messages.WarmHistory():
                return QueuedMessage(lambda: self._between.warm_history(message), message)
        raise TypeError(f"nothing to do for {type(message).__name__}")

    def _new_turn(self, request_id: RequestId | None) -> Turn:
        return Turn(request_id, self._outbox, self._deployment, self._principal)

    def _wake_engine(self) -> None:
        if self._deployment.chat is not None:
            self._deployment.chat.engine.wake()

    def _failed(self, entry: QueuedMessage, error: Exception) -> None:
        log.error("message_failed", error=type(error).__name__, exc_info=error)
        self._refusing.refuse(entry.message, "internal_error", "The server could not handle this message.")

    async def _finish(self, entry: QueuedMessage) -> None:
        if entry.turn is not None and not entry.turn.begun:
            # A cancel that this turn answers stopped the running one as well: that one's `done` comes first.
            if entry.turn.cancelled and self._turn is not None:
                await self._turn.wait()
            entry.turn.refuse()

    # Turns

    async def _start_or_forget(self, start: messages.Start, turn: Turn, prepared: PreparedReply | None) -> None:
        """Begin a turn; what was prepared and is not its reply is thrown away."""
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

    async def _follow_up(self, followup: messages.Followup, turn: Turn) -> None:
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
        if self._cancelling:  # what was cancelled before a turn is told before it
            await asyncio.wait(set(self._cancelling))
        if self._turn is not None and not self._turn.ended:
            self._turn.stop(Stop.BARGE_IN)
            await self._turn.wait()

    def _begin(
        self, turn: Turn, session: Session, request: TurnRequest, words: str, prepared: PreparedReply | None = None
    ) -> None:
        self._turn, self._turn_session = turn, session
        held = None
        if prepared is not None and not turn.stopping and prepared.answers(request):
            held = prepared.release()
        if prepared is not None and held is None:  # which was to make it needless
            self._wake_engine()
        self._preparing.settle(session.session_id)
        session.begin(turn, words)
        turn.when_ended(lambda: session.forget(turn))
        turn.begin(request, held)
        if held is not None:  # the rest of it; what is there has been told
            self._wake_engine()

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
