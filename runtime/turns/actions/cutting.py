"""Cutting a reply in the history to what was heard of it."""

from __future__ import annotations

from runtime.turns.actions.refusing import Refusing
from runtime.turns.outbox import Outbox
from runtime.turns.sessions.heard import heard_chars
from runtime.turns.sessions.hold import SessionHold
from runtime.turns.sessions.session import Session
from runtime.wire import frames, messages
from runtime.wire.messages import Rejected
from runtime.wire.refusals import rejection


class Cutting:
    """Cuts replies for one connection."""

    def __init__(self, outbox: Outbox, hold: SessionHold, refusing: Refusing) -> None:
        self._outbox = outbox  # takes the answers
        self._hold = hold  # finds sessions
        self._refusing = refusing  # tells of what is not done

    def cut(self, session: Session | None, message: messages.Heard) -> None:
        """Cut the session's last reply, or the one that is being said, at once."""
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

    async def cut_elsewhere(self, message: messages.Heard) -> None:
        """Cut a reply that another server may have said."""
        session = self._hold.active(message.session_id) or await self._hold.fetch(message.session_id)
        if session is not None:
            async with session.lock:
                await self._hold.load(session)
        self.cut(session, message)
