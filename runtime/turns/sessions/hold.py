"""Which session a connection has, and which ones it may use."""

from __future__ import annotations

from runtime.turns.prepared import PreparedReplies
from runtime.turns.principal import Principal
from runtime.turns.sessions.registry import SessionQuotaError, SessionRegistry
from runtime.turns.sessions.session import Session
from runtime.turns.stores.record import Record
from runtime.turns.turn import Stop


class SessionHold:
    """One connection's hold on sessions: its own is that of its last `start`, until another connection takes it over.

    Args:
        principal: whose key the client has; sessions belong to it.
        sessions: shared by all connections.
        owner: who sessions are told has them.
    """

    def __init__(self, principal: Principal, sessions: SessionRegistry, owner: object) -> None:
        self._principal = principal
        self._sessions = sessions
        self._owner = owner
        self._session: Session | None = None  # the one of the last `start`

    @property
    def shared(self) -> bool:
        """Whether other servers may have this principal's sessions."""
        return self._sessions.keeper is not None

    @property
    def prepared(self) -> PreparedReplies:
        """Replies that were made before their `start`, of all connections."""
        return self._sessions.prepared

    def glance(self, session_id: str) -> Session:
        """A session for a look at it, whoever has it: the one that is kept, else one as it would be made."""
        return self.find(session_id) or self._sessions.blank(session_id)

    def open(self, session_id: str) -> Session:
        """Find a session, or make it.

        Raises:
            SessionQuotaError: there is no room for it.
        """
        return self._sessions.open(self._principal, session_id, self._owner)

    def find(self, session_id: str) -> Session | None:
        """Find a session that is kept, whoever owns it."""
        return self._sessions.find(self._principal, session_id)

    def active(self, session_id: str | None) -> Session | None:
        """The session that a message means, where this connection may use it: the one that it names, else its own."""
        if session_id is None:
            return self.owned()
        session = self.find(session_id)
        return session if session is not None and self.may_use(session) else None

    def owned(self) -> Session | None:
        """The session of this connection's last `start`, unless another connection has taken it over."""
        session = self._session
        return session if session is not None and session.owner is self._owner else None

    def may_use(self, session: Session) -> bool:
        """Whether no other connection owns the session: only a `start` takes one over."""
        return session.owner is None or session.owner is self._owner

    async def load(self, session: Session) -> bool:
        """See what other servers have written of a session; true where that is news. Nothing where it is ours already.

        Its turn ends first, if any: what it said goes where it belongs in what others have written.

        Args:
            session: its lock is held.
        """
        keeper, lease = self._sessions.keeper, session.lease
        if keeper is None or lease is None or (session.owner is self._owner and lease.epoch):
            return False
        await end_turn(session)
        return not session.lost and await keeper.take(session)

    async def fetch(self, session_id: str | None) -> Session | None:
        """A session that this server does not know, from the store; none where that does not know it either."""
        keeper = self._sessions.keeper
        if keeper is None or session_id is None or self.find(session_id) is not None:
            return None
        if await self.look(session_id) is None:
            return None
        try:
            return self.open(session_id)
        except SessionQuotaError:
            return None

    async def look(self, session_id: str) -> Record | None:
        """What the store has of a session; none where there is no store."""
        keeper = self._sessions.keeper
        return await keeper.look(self._principal, session_id) if keeper is not None else None

    def elsewhere(self, session_id: str) -> bool:
        """Whether other servers may know more of a session than this one."""
        if self._sessions.keeper is None:
            return False
        session = self.find(session_id)
        return session is None or session.owner is None

    async def saved(self) -> None:
        """Wait, not for long, until what has changed in this connection's session is in the store."""
        if self._sessions.keeper is not None and self._session is not None:
            await self._sessions.keeper.saved(self._session)

    async def take(self, session: Session) -> None:
        """Become the session's owner, when its turn has ended, if any; not where another server has it now."""
        await end_turn(session)
        if self._session is not None and self._session is not session:
            self._sessions.release(self._session, self._owner)
        if session.lost:
            return
        session.owner = self._owner
        self._session = session

    def release(self) -> None:
        """Give the session back."""
        if self._session is not None:
            self._sessions.release(self._session, self._owner)


async def end_turn(session: Session) -> None:
    """Interrupt a session's turn, if any, and wait until it has ended."""
    turn = session.turn
    if turn is not None and not turn.ended:
        turn.stop(Stop.BARGE_IN)
        await turn.wait()
