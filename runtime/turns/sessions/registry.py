"""The sessions of this process: found by principal and id, and for how long they are kept.

A session belongs to (principal, `session_id`): one client's key can never see another's sessions, nor drop them. It
outlives its connection by the idle time, so that a client may reconnect.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from runtime import defaults
from runtime.turns.prepared import PreparedReplies
from runtime.turns.principal import Principal
from runtime.turns.sessions.keeper import SessionKeeper
from runtime.turns.sessions.session import SESSION_OVERHEAD_BYTES, Session


class SessionQuotaError(Exception):
    """A principal has as many sessions as it may have, and all of them are in use."""


@dataclass(slots=True)
class _Account:
    """What is kept of one principal: its sessions, those that nobody has by `last_used`, and the bytes of each."""

    sessions: dict[str, Session] = field(default_factory=dict)
    idle: OrderedDict[str, Session] = field(default_factory=OrderedDict)
    sizes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0


class SessionRegistry:
    """All sessions: found by principal and id, dropped when idle for too long or when their principal's quota is full.

    A principal that wants more than its quota loses those of its own sessions that were not used for longest, and never
    another's.

    Attributes:
        keeper: keeps them beyond this process; none where nobody does.
        prepared: replies that were made before their `start`.

    Args:
        create: makes a session of an id.
        idle_ttl: seconds that a session without a connection is kept.
        maximum: sessions of all principals.
        max_bytes: memory of all sessions.
        clock: seconds.
        keeper: keeps them beyond this process; none where nobody does.
    """

    def __init__(
        self,
        create: Callable[[str], Session],
        *,
        idle_ttl: float,
        maximum: int,
        max_bytes: int = defaults.SESSION_BYTES,
        clock: Callable[[], float] = time.monotonic,
        keeper: SessionKeeper | None = None,
    ) -> None:
        self._create = create
        self.prepared = PreparedReplies()  # by the sessions that they are for, which need not be kept yet
        self._idle_ttl = idle_ttl
        self._maximum = maximum
        self._max_bytes = max_bytes
        self._most, self._most_bytes = maximum, max_bytes  # of one principal
        self._clock = clock
        self.keeper = keeper
        if keeper is not None:
            keeper.on_lost(self.lose)
        self._accounts: dict[Principal, _Account] = {}  # none without a session
        self._all: dict[Session, Principal] = {}  # of all accounts
        self._idle: OrderedDict[Session, None] = OrderedDict()  # those without an owner, in the order of `last_used`
        self._bytes = 0  # of all accounts

    def __len__(self) -> int:
        return len(self._all)

    @property
    def bytes(self) -> int:
        """Memory of all sessions' texts."""
        return self._bytes

    def set_quota(self, sessions: int, bytes_: int) -> None:
        """Set what each principal may have; what is above goes at once, as far as it has no connection."""
        self._most, self._most_bytes = min(sessions, self._maximum), min(bytes_, self._max_bytes)
        for principal in list(self._accounts):
            self._shrink(principal)

    def kept(self, principal: Principal) -> tuple[int, int]:
        """Sessions of one principal, and their bytes."""
        account = self._accounts.get(principal)
        return (len(account.sessions), account.bytes) if account is not None else (0, 0)

    def find(self, principal: Principal, session_id: str) -> Session | None:
        """Find a session that is still kept."""
        account = self._accounts.get(principal)
        session = account.sessions.get(session_id) if account is not None else None
        if account is None or session is None or self._expired(session):
            return None
        self._touch(account, session)
        self._measure(account, session)
        return session

    def open(self, principal: Principal, session_id: str, owner: object | None = None) -> Session:
        """Find a session, or make it when there is none.

        Args:
            principal: whose it is.
            session_id: the client's name for it.
            owner: who will have it; what it had until now may go to make room.

        Raises:
            SessionQuotaError: there is no room, and nothing of the principal's own that could go.
        """
        session = self.find(principal, session_id)
        if session is not None:
            return session
        account = self._accounts.setdefault(principal, _Account())
        self._drop(principal, account, session_id)  # what has expired and was not dropped yet
        if not self._make_room(principal, owner):
            principal.refused += 1
            raise SessionQuotaError
        account = self._accounts.setdefault(principal, _Account())
        session = self._create(session_id)
        if self.keeper is not None:
            self.keeper.attach(principal, session)
        account.sessions[session_id] = session
        self._all[session] = principal
        self._touch(account, session)
        self._measure(account, session)
        session.resized = lambda: self._resized(principal, session)
        session.changed_hands = lambda: self._changed_hands(principal, session)
        return session

    def blank(self, session_id: str) -> Session:
        """A session as it would be made, for a look at it: it is kept nowhere."""
        return self._create(session_id)

    def release(self, session: Session, owner: object) -> None:
        """Take the owner from a session; its idle time begins."""
        if session.owner is owner:
            session.owner = None
            session.resized()  # what is not in use any more may have to go

    def expire(self) -> int:
        """Drop what has been idle for too long; return how many that were.

        Where all places are taken this is asked for with each new session, so it looks at those alone that go.
        """
        expired = list(takewhile(self._long_unused, self._idle))
        for session in expired:
            self.lose(session)
        return len(expired)

    def forget(self, principal: Principal) -> None:
        """Drop all sessions of a principal that is gone."""
        account = self._accounts.get(principal)
        for session_id in list(account.sessions) if account is not None else ():
            self._drop(principal, self._accounts[principal], session_id)
        if self.keeper is not None:
            self.keeper.forget(principal)

    def lose(self, session: Session) -> None:
        """Drop a session here alone; whoever asks for it next gets what the store has of it."""
        principal = self._all.get(session)
        if principal is not None:
            self._drop(principal, self._accounts[principal], session.session_id)

    def owned(self) -> Iterator[Session]:
        """Sessions that a connection has."""
        return (session for session in self._all if session.owner is not None)

    def _touch(self, account: _Account, session: Session) -> None:
        session.last_used = self._clock()
        if session.owner is None:
            account.idle[session.session_id] = session
            account.idle.move_to_end(session.session_id)
            self._idle[session] = None
            self._idle.move_to_end(session)

    def _changed_hands(self, principal: Principal, session: Session) -> None:
        account = self._accounts[principal]
        if session.owner is None:
            self._touch(account, session)
        else:
            account.idle.pop(session.session_id, None)
            self._idle.pop(session, None)

    def _long_unused(self, session: Session) -> bool:
        return self._clock() - session.last_used > self._idle_ttl

    def _expired(self, session: Session) -> bool:
        return session.owner is None and self._long_unused(session)

    def _make_room(self, principal: Principal, owner: object | None) -> bool:
        """Drop as much of a principal's own as one more session needs; false when there is not enough that may go."""
        account = self._accounts.get(principal)
        if len(self._all) >= self._maximum:
            self.expire()  # what nobody can find any more takes no one's place
            account = self._accounts.get(principal)
        while account is not None and (
            len(account.sessions) >= self._most
            or len(self._all) >= self._maximum
            or self._over_bytes(account, more=SESSION_OVERHEAD_BYTES)
        ):
            if not self._drop_oldest(principal, account, owner):
                return False
            account = self._accounts.get(principal)
        return len(self._all) < self._maximum

    def _shrink(self, principal: Principal) -> None:
        """Drop a principal's own sessions until it keeps to its quota, or what is left has a connection."""
        while (account := self._accounts.get(principal)) is not None and (
            len(account.sessions) > self._most or self._over_bytes(account)
        ):
            if not self._drop_oldest(principal, account, None):
                return

    def _over_bytes(self, account: _Account, more: int = 0) -> bool:
        """Whether a principal is over its quota, or, where quotas add up to more than all, takes from the others."""
        takes = account.bytes + more
        most = self._max_bytes // len(self._accounts) if self._bytes + more > self._max_bytes else self._most_bytes
        return takes > min(most, self._most_bytes)

    def _drop_oldest(self, principal: Principal, account: _Account, owner: object | None) -> bool:
        session = next(iter(account.idle.values()), None)
        if session is None and owner is not None:
            session = next((one for one in account.sessions.values() if one.owner is owner), None)
        if session is None:
            return False
        self._drop(principal, account, session.session_id, everywhere=True)
        return True

    def _drop(self, principal: Principal, account: _Account, session_id: str, *, everywhere: bool = False) -> None:
        session = account.sessions.pop(session_id, None)
        if session is not None:
            session.resized = session.changed_hands = _unbound
            account.idle.pop(session_id, None)
            self._idle.pop(session, None)
            if self.keeper is not None:
                self.keeper.dropped(session, everywhere=everywhere)
            size = account.sizes.pop(session_id)
            account.bytes -= size
            self._bytes -= size
            del self._all[session]
        if not account.sessions:
            self._accounts.pop(principal, None)

    def _resized(self, principal: Principal, session: Session) -> None:
        """Count a session's bytes anew; when they are too many, others of its principal's go."""
        self._measure(self._accounts[principal], session)
        if self.keeper is not None:
            self.keeper.changed(session)
        self._shrink(principal)

    def _measure(self, account: _Account, session: Session) -> None:
        size = session.size
        grown = size - account.sizes.get(session.session_id, 0)
        account.sizes[session.session_id] = size
        account.bytes += grown
        self._bytes += grown


def _unbound() -> None:
    pass
