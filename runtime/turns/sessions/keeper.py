"""The keeper: writes sessions to the store when they have changed, and takes them from it, beside all turns.

    changed ──► due ──► written ──► confirmed
       ▲          │         │
       │          │         └── refused: another server has the session; what was said here is left beside it
       └──────────┴── the store does not answer: everything waits, is written when it does, and no turn waits for it

One round of writes is under way at a time. What changes meanwhile is in the next one, once, however often it changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from runtime.deployment.metrics import StoreMetrics
from runtime.host.supervision import Background, report
from runtime.host.timeouts import within
from runtime.turns.principal import Principal
from runtime.turns.sessions.exchange import Exchange
from runtime.turns.sessions.lease import Lease
from runtime.turns.sessions.session import Session
from runtime.turns.stores import interface
from runtime.turns.stores.interface import Leave, Outcome, Store, StoreError, Taken, Write
from runtime.turns.stores.record import Record, StoredTurn
from runtime.turns.turn import Stop

log = structlog.get_logger(__name__)

# That a turn has begun is written with its end, where that comes as soon; what its message has changed is not.
LAZY_S = 2.0
# Between two rounds: under load that makes many writes one request, which costs a third.
PACE_S = 0.1
# Sessions in one round.
BATCH = 64
# Between attempts while the store does not answer.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
# Time for the last writes, where something ends that was about to be written.
SAVE_TIMEOUT_S = 1.0


class SessionKeeper:
    """Keeps this server's sessions in a store.

    Attributes:
        up: whether the store answers, as far as is known.
        lost: called with a session that another server has taken over.

    Args:
        store: where they are kept.
        exchange: what is written of them, and read.
        metrics: counts what is done.
        pace: seconds between rounds.
        first_wait: seconds before the store is asked again that did not answer.
    """

    def __init__(
        self,
        store: Store,
        exchange: Exchange,
        metrics: StoreMetrics,
        *,
        pace: float = PACE_S,
        first_wait: float = FIRST_WAIT_S,
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._metrics = metrics
        self._pace = pace
        self._first_wait = first_wait
        self._loop = asyncio.get_running_loop()  # its clock
        self._changed: dict[Session, float] = {}  # loop time of the first change that is not written
        self._writing: dict[Session, float] = {}  # those of the round that is under way
        self._urgent: set[Session] = set()  # somebody waits for these
        self._gone: list[Write] = []  # sessions that are to be removed
        self._wake = asyncio.Event()  # something may be due
        self._hurry = asyncio.Event()  # somebody waits for the next round
        self._round_over = asyncio.Event()  # replaced when it is set
        self._timer: asyncio.TimerHandle | None = None  # for what is not due yet
        self._background = Background()  # what nobody awaits
        self.up = True
        self.lost: Callable[[Session], None] = lambda session: None
        metrics.up.set(1)
        metrics.lag.set_function(self.lag)

    # What the registry tells

    def attach(self, principal: Principal, session: Session) -> None:
        """Know a session that was made here. Nothing is asked or written yet."""
        session.lease = Lease(interface.place(principal.identity, session.session_id), session.sampling)

    def changed(self, session: Session) -> None:
        """Have a session written soon."""
        lease = session.lease
        if lease is None or lease.gone or not lease.touched:
            return
        self._changed.setdefault(session, self._loop.time())
        if session.owner is None:  # its client is gone, perhaps to another server
            self._hurry.set()
        if lease.open is None or lease.news or lease.lost:
            self._wake.set()
        elif self._timer is None:
            self._timer = self._loop.call_later(LAZY_S, self._timer_rang)

    def dropped(self, session: Session, *, everywhere: bool) -> None:
        """Forget a session that is kept here no more; `everywhere` removes it from the store too."""
        self._changed.pop(session, None)
        lease = session.lease
        if lease is None or lease.lost:  # what was said in a session that was lost is still to be left
            return
        lease.gone = True
        if everywhere and lease.epoch and self.up:
            self._gone.append(Write(lease.place, lease.epoch, None))
            self._wake.set()

    def forget(self, principal: Principal) -> None:
        """Remove all sessions of a principal that is gone."""
        if self.up:
            self._background.spawn("session_store_forget", self._remove_all(principal))

    async def _remove_all(self, principal: Principal) -> None:
        try:
            await self._store.remove_all(interface.shelf(principal.identity))
        except StoreError as error:
            self._failed(error)

    # What a connection asks

    async def take(self, session: Session) -> bool:
        """Make this server the one that writes a session, with what the store has of it; true where that is news."""
        lease = session.lease
        if lease is None or not self.up:
            return False
        lease.takes += 1
        try:
            taken = await self._store.take(lease.place)
        except StoreError as error:
            self._failed(error)
            return False
        finally:
            lease.takes -= 1
            if session in self._changed:
                self._wake.set()
        self._metrics.read()
        return self._joined(session, lease, taken)

    async def look(self, principal: Principal, session_id: str) -> Record | None:
        """What the store has of a session, without taking it; none where it has none."""
        if not self.up:
            return None
        place = interface.place(principal.identity, session_id)
        try:
            found = await self._store.look(place)
        except StoreError as error:
            self._failed(error)
            return None
        self._metrics.read()
        return self._exchange.read(place, found)

    async def saved(self, session: Session) -> None:
        """Wait until a session is written, not for long, and not for a store that does not answer."""

        async def wait() -> None:
            while self.up and (session in self._changed or session in self._writing):
                self._urgent.add(session)
                self._wake.set()
                self._hurry.set()
                await self._round_over.wait()

        try:
            await within(SAVE_TIMEOUT_S, wait())
        except asyncio.TimeoutError:
            log.warning("session_not_saved", seconds=SAVE_TIMEOUT_S)
        finally:
            self._urgent.discard(session)

    def lag(self) -> float:
        """Seconds since the oldest change that is not written."""
        oldest = min((*self._changed.values(), *self._writing.values()), default=None)
        return max(0.0, self._loop.time() - oldest) if oldest is not None else 0.0

    # Writing

    async def run(self) -> None:
        """Write what is due, for ever."""
        failures = 0
        while True:
            if self.up:
                await self._wake.wait()
            else:
                await asyncio.sleep(min(LONGEST_WAIT_S, self._first_wait * 2.0 ** min(failures, 16)))
            self._wake.clear()
            self._hurry.clear()
            try:
                await self._round()
            except StoreError as error:
                failures += 1
                self._failed(error)
            except Exception as error:  # noqa: BLE001 - one session's fault must not end the writing of all
                failures += 1
                report("session_store", error, failures)
                await asyncio.sleep(min(LONGEST_WAIT_S, self._first_wait * 2.0 ** min(failures, 16)))
            else:
                failures = 0
            await self._rest()

    async def _rest(self) -> None:
        """Let changes gather for the next round, unless one of them is waited for."""
        timer = self._loop.call_later(self._pace, self._hurry.set)
        try:
            await self._hurry.wait()
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Write what has changed, within reason, and let go of the store."""

        async def wait() -> None:
            while self.up and (self._changed or self._writing or self._gone):
                self._urgent.update(self._changed)
                self._wake.set()
                self._hurry.set()
                await self._round_over.wait()

        try:
            await within(SAVE_TIMEOUT_S, wait())
        except asyncio.TimeoutError:
            log.warning("sessions_not_saved", sessions=len(self._changed))

    async def stop(self) -> None:
        """End what runs, and let go of the store, without writing anything."""
        if self._timer is not None:
            self._timer.cancel()
        await self._background.cancel()
        await self._store.close()

    def _timer_rang(self) -> None:
        self._timer = None
        self._wake.set()

    async def _round(self) -> None:
        """Write what is due. What cannot be written is due again.

        Raises:
            StoreError: the store does not answer.
        """
        due = self._due()
        self._writing = {session: self._changed.pop(session) for session in due}
        gone, self._gone = self._gone, []
        try:
            if not due and not gone and not self.up:
                await self._store.ping()
            for session in due:
                await self._take_first(session)
            # What has changed since it was looked at is in what is written now.
            for session in due:
                self._changed.pop(session, None)
            await self._write([session for session in due if not self._writing_waits(session)], gone)
            if not self.up:
                self._back()
        except BaseException:
            self._gone[:0] = gone
            for session, since in self._writing.items():
                if session.lease is not None and not session.lease.gone:
                    session.lease.news = True
                    self._changed[session] = since
            raise
        finally:
            self._writing = {}
            self._round_over.set()
            self._round_over = asyncio.Event()

    def _due(self) -> list[Session]:
        due, later, now = [], False, self._loop.time()
        for session, since in self._changed.items():
            lease = session.lease
            if lease is None or lease.takes:  # whoever takes it wakes us
                continue
            if lease.open is None or lease.news or lease.lost or session in self._urgent or now - since >= LAZY_S:
                due.append(session)
                if len(due) == BATCH:
                    self._wake.set()
                    break
            else:
                later = True
        if later and self._timer is None:
            self._timer = self._loop.call_later(LAZY_S, self._timer_rang)
        return due

    async def _take_first(self, session: Session) -> None:
        """Take a session that began while the store did not answer.

        Not from a server to which its client may have gone since: then what was said here is left beside it.
        """
        lease = session.lease
        if lease is None or lease.epoch or lease.lost or lease.takes:
            return
        lease.takes += 1
        try:
            found = await self._store.look(lease.place) if session.owner is None else None
            taken = await self._store.take(lease.place) if found is None or not found.taken else None
        finally:
            lease.takes -= 1
        self._metrics.read()
        if taken is not None:
            self._joined(session, lease, taken)
        else:
            self._lose(session, lease)

    def _writing_waits(self, session: Session) -> bool:
        """Whether a session is being taken again: it is written when that is done."""
        lease = session.lease
        if lease is None or not lease.takes:
            return False
        self._changed.setdefault(session, self._writing[session])
        return True

    async def _write(self, due: list[Session], gone: list[Write]) -> None:
        changes: list[Write | Leave] = []
        ends: list[tuple[Session, Callable[[Outcome], None]]] = []
        for session in due:
            lease = session.lease
            if lease is None or lease.gone:
                continue
            if lease.lost:
                for turn in lease.ended:
                    changes.append(self._exchange.left(lease, turn))
                    ends.append((session, partial(self._left_ended, lease, turn)))
            else:
                changes.append(self._exchange.whole(session, lease))
                ended, merged = {turn.id for turn in lease.ended}, set(lease.merged)
                ends.append((session, partial(self._whole_ended, session, lease, lease.epoch, ended, merged)))
        if not changes and not gone:
            return
        outcomes = await self._store.apply([*changes, *gone])
        errors: dict[Session, str] = {}
        for (session, end), outcome in zip(ends, outcomes, strict=False):
            if outcome.error:
                errors[session] = outcome.error
            else:
                end(outcome)
        gone.clear()
        for session in due:
            if session not in errors:
                self._writing.pop(session, None)
        if errors:  # those again: what is written twice is written once
            raise StoreError(next(iter(errors.values())))

    def _whole_ended(
        self, session: Session, lease: Lease, epoch: int, ended: set[str], merged: set[str], outcome: Outcome
    ) -> None:
        if outcome.accepted:
            self._metrics.written()
            lease.confirm(ended, merged)
            if self._exchange.merge(session, lease, outcome.left):
                session.resized()
        elif lease.epoch != epoch or lease.takes:  # it has been taken again meanwhile
            self._changed.setdefault(session, self._loop.time())
        else:
            self._lose(session, lease)

    def _left_ended(self, lease: Lease, turn: StoredTurn, outcome: Outcome) -> None:
        lease.ended = [other for other in lease.ended if other.id != turn.id]
        if outcome.accepted:
            self._metrics.written()
        else:
            self._metrics.failed()

    def _lose(self, session: Session, lease: Lease) -> None:
        """Another server has the session: end its turn here, and leave what was said where that server finds it."""
        lease.lost = True
        self._metrics.lost()
        self.lost(session)
        session.owner = LOST  # the connection has no session until its next `start`
        session.resized = partial(self.changed, session)
        if session.turn is not None:
            session.turn.stop(Stop.BARGE_IN)
        if lease.ended:
            self.changed(session)

    def _joined(self, session: Session, lease: Lease, taken: Taken) -> bool:
        known = lease.epoch != 0
        news = self._exchange.join(session, lease, taken)
        if news:
            session.resized()
        elif taken.found.value is None and known:
            self.changed(session)  # the store has forgotten it
        return news

    # Whether the store answers

    def _failed(self, error: StoreError) -> None:
        self._metrics.failed()
        if self.up:
            self.up = False
            self._metrics.up.set(0)
            self._wake.set()
            log.error(
                "session_store_lost",
                reason=str(error),
                consequence="turns go on from memory; what changes is written when the store answers again",
            )

    def _back(self) -> None:
        self.up = True
        self._metrics.up.set(1)
        self._wake.set()
        log.info("session_store_back", sessions_to_write=len(self._changed))


# The owner of a session that another server has.
LOST = object()
