"""The message handler: does what a client's messages ask, in their order. Messages come in, frames go to the outbox.

`cancel` and `heard` act at once. Everything else goes through the work queue. Turns and prefills run beside it.
"""

from __future__ import annotations

import structlog

from runtime.deployment.models import Deployment
from runtime.turns.actions.between_turns import BetweenTurns
from runtime.turns.actions.cutting import Cutting
from runtime.turns.actions.preparing import Preparing
from runtime.turns.actions.refusing import GOES_AWAY, Refusing
from runtime.turns.actions.starting import Starting
from runtime.turns.actions.warming import Warming
from runtime.turns.outbox import Outbox
from runtime.turns.principal import Principal
from runtime.turns.sessions.hold import SessionHold
from runtime.turns.sessions.registry import SessionRegistry
from runtime.turns.turn import Stop, Turn
from runtime.turns.work_queue import QueuedMessage, WorkQueue
from runtime.wire import frames, messages
from runtime.wire.frames import RequestId

log = structlog.get_logger(__name__)


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
        self._outbox = outbox  # takes every answer
        self._deployment = deployment  # shared by all connections
        self._hold = SessionHold(principal, sessions, object())  # its session; the owner is no cycle of ours
        self._queue = WorkQueue(self._failed, self._finish)  # what waits
        self._draining = False  # nothing new is begun
        self._warming = Warming(outbox, deployment, principal)  # prefills, beside the worker
        self._refusing = Refusing(principal, outbox)  # answers what is not done
        # Makes replies before their `start`.
        self._preparing = Preparing(deployment, principal, self._hold, self._refusing)
        # Begins turns.
        self._starting = Starting(
            outbox, deployment, principal, self._hold, self._refusing, self._preparing, traceparent
        )
        self._cutting = Cutting(outbox, self._hold, self._refusing)  # cuts replies to what was heard
        # Does what begins no turn.
        self._between = BetweenTurns(outbox, deployment, self._hold, self._warming, self._refusing)

    @property
    def busy(self) -> bool:
        """Whether anything that the client asked for is not done: a turn, a prefill, a message that waits."""
        return bool(self._queue.entries or self._warming.tasks or self._open_turns())

    @property
    def idle_since(self) -> float:
        """Loop time at which the last of it was done."""
        turn = self._starting.turn
        turn_ended = turn.ended_at if turn is not None else 0.0
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
        if turns:
            self._preparing.end("ended")
            turns[-1].cancel(request_id)
        else:
            outbox = self._outbox  # all that the callback may hold: it is no way to this connection
            self._preparing.cancel(lambda: outbox.put(frames.Done(cancelled=True, request_id=request_id)))

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
            self._cutting.cut(self._starting.session, message)
        elif not self._hold.elsewhere(message.session_id):
            self._cutting.cut(self._hold.active(message.session_id), message)
        elif self._queue.full:
            self._refusing.refuse(message, "message_rate_limited", "Too many messages wait; try again in 1 s.", 1)
        else:
            self._queue.put(QueuedMessage(lambda: self._cutting.cut_elsewhere(message), message))

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
        if self._starting.turn is not None:
            await self._starting.turn.wait()
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
        turns = [self._starting.turn, *(entry.turn for entry in self._queue.entries)]
        return [turn for turn in dict.fromkeys(turns) if turn is not None and not turn.ended]

    # What the queue asks

    def _queued(self, message: messages.Inbound) -> QueuedMessage:
        request_id = message.request_id
        match message:
            case messages.Start():
                turn = self._starting.new_turn(request_id)
                prepared = self._preparing.take()
                if prepared is None:
                    self._deployment.wake_engine()
                return QueuedMessage(lambda: self._starting.start(message, turn, prepared), message, turn)
            case messages.Prepare():
                announced = self._preparing.announce(message)
                self._deployment.wake_engine()
                return QueuedMessage(lambda: self._preparing.prepare(message, announced), message)
            case messages.Followup():
                self._preparing.end("ended")
                turn = self._starting.new_turn(request_id)
                self._deployment.wake_engine()
                return QueuedMessage(lambda: self._starting.follow_up(message, turn), message, turn)
            case messages.ChatPrompt():
                return QueuedMessage(lambda: self._between.set_persona(message), message)
            case messages.WarmPersona():
                return QueuedMessage(lambda: self._between.warm_persona(message), message)
            case messages.WarmHistory():
                return QueuedMessage(lambda: self._between.warm_history(message), message)
        raise TypeError(f"nothing to do for {type(message).__name__}")

    def _failed(self, entry: QueuedMessage, error: Exception) -> None:
        log.error("message_failed", error=type(error).__name__, exc_info=error)
        self._refusing.refuse(entry.message, "internal_error", "The server could not handle this message.")

    async def _finish(self, entry: QueuedMessage) -> None:
        if entry.turn is not None and not entry.turn.begun:
            # A cancel that this turn answers stopped the running one as well: that one's `done` comes first.
            if entry.turn.cancelled and self._starting.turn is not None:
                await self._starting.turn.wait()
            entry.turn.refuse()
