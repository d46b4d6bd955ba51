"""The pending sessions: those that the store does not have as they are here, since when, and when they are written.

What changes while a round of writes is under way is pending again, once, however often it changes.
"""

from __future__ import annotations

import asyncio
from itertools import islice

from runtime.turns.sessions.lease import Lease
from runtime.turns.sessions.session import Session
from runtime.turns.stores.interface import Write

# That a turn has begun is written with its end, where that comes as soon; what its message has changed is not.
LAZY_S = 2.0
# What timers ring too early, at most.
TOLERANCE_S = 0.01
# Sessions in one round, at most.
BATCH = 64


class Pending:
    """What is to be written, and what of it is being written.

    Attributes:
        changed: sessions, with the loop time of the first change that is not written.
        writing: those of the round that is under way.
        gone: sessions that are to be removed.
        wake: set where something may be due.
        hurry: set where somebody waits for the next round.
        batch: sessions in one round. Fewer where the store did not answer: after an outage, so many at once may take
            longer on their way than it may take to answer, and would never come there.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()  # its clock
        self.changed: dict[Session, float] = {}
        self.writing: dict[Session, float] = {}
        self.gone: list[Write] = []
        self.wake = asyncio.Event()
        self.hurry = asyncio.Event()
        self.batch = BATCH
        self._ready: dict[Session, None] = {}  # those of them that may have news
        self._urgent: set[Session] = set()  # somebody waits for these
        self._round: list[Session] = []  # the round that is under way, as it began
        self._waiting: dict[Session, asyncio.Future[None]] = {}  # for those who wait for one session
        self._round_over: asyncio.Event | None = None  # for who waits for a round's end
        self._timer: asyncio.TimerHandle | None = None  # for what is not due yet

    @property
    def many(self) -> bool:
        """Whether there is enough for a whole round, and so nothing to wait for."""
        return len(self._ready) >= self.batch

    def __bool__(self) -> bool:
        return bool(self.changed or self.writing or self.gone)

    def __contains__(self, session: object) -> bool:
        return session in self.changed or session in self.writing

    @property
    def lag(self) -> float:
        """Seconds since the oldest change that is not written."""
        oldest = min((*self.changed.values(), *self.writing.values()), default=None)
        return max(0.0, self._loop.time() - oldest) if oldest is not None else 0.0

    def note(self, session: Session) -> None:
        """Have a session written soon."""
        lease = session.lease
        if lease is None or lease.gone or not lease.touched:
            return
        if session not in self.changed:
            self.changed[session] = self._loop.time()
        if session.owner is None:  # its client is gone, perhaps to another server
            self.hurry.set()
        if _has_news(lease):  # until a round begins: then its turn may have begun
            self._ready[session] = None
            self.wake.set()
            if self.many:
                self.hurry.set()
        elif self._timer is None:
            self._timer = self._loop.call_later(LAZY_S, self._timer_rang)

    def again(self, session: Session) -> None:
        """Have a session written that was being written, or that cannot be written yet."""
        self.changed.setdefault(session, self.writing.get(session, self._loop.time()))
        self._ready[session] = None

    def drop(self, session: Session) -> None:
        """Know nothing more of a session: while the store does not answer, nothing else would let go of it.

        Whoever waits for it goes on, but where another server has it: then what was said here is still to be left.
        """
        self.changed.pop(session, None)
        self._ready.pop(session, None)
        if not session.lost:
            self._told(session)

    def remove(self, write: Write) -> None:
        """Have a session removed."""
        self.gone.append(write)
        self.wake.set()

    def begin_round(self) -> tuple[list[Session], list[Write]]:
        """Take what is due, and what is to be removed."""
        self.writing = self._take_due()
        self._round = list(self.writing)
        gone, self.gone = self.gone, []
        return list(self.writing), gone

    def was_answered(self, sessions: int) -> None:
        """Note that a round of so many sessions was answered: where it was a whole one, the next may be larger."""
        if sessions >= self.batch:
            self.batch = min(BATCH, self.batch + max(1, self.batch // 8))

    def was_not_answered(self) -> None:
        """Note that a round was not answered: the next is half as large."""
        self.batch = max(1, self.batch // 2)

    def end_round(self, *, failed: bool, gone: list[Write]) -> None:
        """Let those go on who wait for a round. What it has not written is due again.

        Args:
            failed: whether it was broken off.
            gone: what it was to remove.
        """
        if failed:
            self.gone[:0] = gone
            for session, since in self.writing.items():
                if session.lease is not None and not session.lease.gone:
                    session.lease.news = True
                    self.changed[session] = since
                    self._ready[session] = None
        self.writing = {}
        for session in self._round:
            if session not in self.changed:
                self._told(session)
        self._round.clear()
        if self._round_over is not None:
            self._round_over.set()
            self._round_over = None

    async def wait_for(self, session: Session) -> None:
        """Have a session written at once, and wait until it is, or nobody waits any more.

        Whoever waits is woken once: when thousands of connections end together, each round has a few of their sessions.
        """
        if session not in self:
            return
        self._urgent.add(session)
        self.wake.set()
        self.hurry.set()
        await asyncio.shield(self._waiting.setdefault(session, self._loop.create_future()))

    def let_go(self) -> None:
        """Let all go on who wait for a session: the store does not answer."""
        for session in list(self._waiting):
            self._told(session)

    def _told(self, session: Session) -> None:
        self._urgent.discard(session)
        waiting = self._waiting.pop(session, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def wait_for_round(self, *sessions: Session) -> None:
        """Have sessions written at once, and wait until a round is over that may have done it."""
        self._urgent.update(sessions)
        self.wake.set()
        self.hurry.set()
        if self._round_over is None:
            self._round_over = asyncio.Event()
        try:
            await self._round_over.wait()
        finally:
            self._urgent.difference_update(sessions)

    def close(self) -> None:
        """Wake nobody any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _take_due(self) -> dict[Session, float]:
        """Take those out of `changed` that are to be written now, and see to it that the others will be."""
        changed, due = self.changed, dict[Session, float]()
        # Most of what changed is turns that have just begun, and is not looked at.
        for session in [*self._ready, *self._urgent] if self._urgent else list(self._ready):
            lease = session.lease
            if session not in changed or lease is None:
                self._ready.pop(session, None)
            elif not lease.takes:  # else whoever takes it wakes us
                if len(due) == self.batch:
                    self.wake.set()
                    return due
                self._ready.pop(session, None)
                if _has_news(lease) or session in self._urgent:
                    due[session] = changed.pop(session)
        now = self._loop.time()
        for session, since in list(islice(changed.items(), BATCH)):  # the oldest first
            if now - since < LAZY_S - TOLERANCE_S:
                if self._timer is None:
                    self._timer = self._loop.call_at(since + LAZY_S, self._timer_rang)
                break
            if session.lease is not None and not session.lease.takes:
                if len(due) == self.batch:
                    self.wake.set()
                    break
                due[session] = changed.pop(session)
        return due

    def _timer_rang(self) -> None:
        self._timer = None
        self.wake.set()


def _has_news(lease: Lease) -> bool:
    """Whether more has changed than that a turn has begun."""
    return lease.open is None or lease.news or lease.lost
