"""The keeper: writes sessions to the store when they have changed, and takes them from it, beside all turns.

    changed ──► pending ──► written ──► confirmed
       ▲           │
       └───────────┴── the store does not answer: everything waits, is written when it does, and no turn waits for it

One round of writes is under way at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from runtime.deployment.store_metrics import StoreMetrics
from runtime.host.supervision import Background, report
from runtime.host.timeouts import within
from runtime.turns.principal import Principal
from runtime.turns.sessions.exchange import Exchange
from runtime.turns.sessions.lease import Lease
from runtime.turns.sessions.pending import Pending
from runtime.turns.sessions.session import Session
from runtime.turns.sessions.writer import Writer
from runtime.turns.stores import interface
from runtime.turns.stores.interface import Store, StoreError, Write
from runtime.turns.stores.record import Record

log = structlog.get_logger(__name__)

# From a change to the round that writes it: what gathers meanwhile is one request. Most of a round's price is that its
# code and data have left the processor's caches, however many sessions it has.
PACE_S = 0.2
# Between attempts while the store does not answer.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
# Time for the last writes, where something ends that was about to be written.
SAVE_TIMEOUT_S = 1.0


class SessionKeeper:
    """Keeps this server's sessions in a store.

    Attributes:
        up: whether the store answers, as far as is known.

    Args:
        store: where they are kept.
        exchange: what is written of them, and read.
        metrics: counts what is done.
        pace: seconds from a change to its round.
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
        self._exchange = exchange
        self._metrics = metrics
        self._pace = pace
        self._first_wait = first_wait
        self._loop = asyncio.get_running_loop()  # makes timers
        self._pending = Pending()  # what the store does not have yet
        self._writer = Writer(store, exchange, metrics, self._pending)  # brings it there, in rounds
        self._background = Background()  # what nobody awaits
        self._forgotten: set[str] = set()  # where sessions of principals that are gone may lie still
        self.up = True
        metrics.up.set(1)
        metrics.lag.set_function(self.lag)

    @property
    def settled(self) -> bool:
        """Whether the store has everything."""
        return self.up and not self._pending

    # What the registry tells

    def on_lost(self, call: Callable[[Session], None]) -> None:
        """Have something called with each session that another server has taken over."""
        self._writer.lost = call

    def attach(self, principal: Principal, session: Session) -> None:
        """Know a session that was made here. Nothing is asked or written yet."""
        if self._forgotten:  # whoever has that name now
            self._forgotten.discard(interface.shelf(principal.identity))
        session.lease = Lease(interface.place(principal.identity, session.session_id), session.sampling)

    def changed(self, session: Session) -> None:
        """Have a session written soon."""
        self._pending.note(session)

    def dropped(self, session: Session, *, everywhere: bool) -> None:
        """Forget a session that is kept here no more; `everywhere` removes it from the store too."""
        self._pending.drop(session)
        lease = session.lease
        if lease is None or lease.lost:  # what was said in a session that was lost is still to be left
            return
        lease.gone = True
        if everywhere and lease.epoch and self.up:
            self._pending.remove(Write(lease.place, lease.epoch, None))

    def forget(self, principal: Principal) -> None:
        """Remove all sessions of a principal that is gone, together with those of others that are gone with it."""
        if not self._forgotten:
            self._background.spawn("session_store_forget", self._remove_forgotten())
        self._forgotten.add(interface.shelf(principal.identity))

    async def _remove_forgotten(self) -> None:
        failures = 0
        while self._forgotten:
            if self.up:
                shelves = frozenset(self._forgotten)
                try:
                    await self._writer.store.remove_all(*shelves)
                except StoreError as error:
                    self._failed(error)
                else:
                    self._forgotten -= shelves
                    continue
            failures += 1
            await asyncio.sleep(min(LONGEST_WAIT_S, self._first_wait * 2.0 ** min(failures, 16)))

    # What a connection asks

    async def take(self, session: Session) -> bool:
        """Make this server the one that writes a session, with what the store has of it; true where that is news."""
        lease = session.lease
        if lease is None or not self.up:
            return False
        lease.takes += 1
        try:
            taken = await self._writer.store.take(lease.place)
        except StoreError as error:
            self._failed(error)
            return False
        finally:
            lease.takes -= 1
            if session in self._pending.changed:
                self._pending.wake.set()
        self._metrics.read()
        return self._writer.join(session, lease, taken)

    async def look(self, principal: Principal, session_id: str) -> Record | None:
        """What the store has of a session, without taking it; none where it has none."""
        if not self.up:
            return None
        place = interface.place(principal.identity, session_id)
        try:
            found = await self._writer.store.look(place)
        except StoreError as error:
            self._failed(error)
            return None
        self._metrics.read()
        return self._exchange.read(place, found)

    async def saved(self, session: Session) -> None:
        """Wait until a session is written, not for long, and not for a store that does not answer."""
        if not self.up:
            return
        try:
            await within(SAVE_TIMEOUT_S, self._pending.wait_for(session))
        except asyncio.TimeoutError:
            log.warning("session_not_saved", seconds=SAVE_TIMEOUT_S)

    def lag(self) -> float:
        """Seconds since the oldest change that is not written."""
        return self._pending.lag

    # Writing

    async def run(self) -> None:
        """Write what is due, for ever."""
        failures = 0
        try:  # whoever starts the server hears now of a store that cannot be used, and not with the first turn
            await self._writer.store.ping()
        except StoreError as error:
            self._failed(error)
        while True:
            if self.up:
                await self._pending.wake.wait()
                await self._gather()
            else:
                await asyncio.sleep(min(LONGEST_WAIT_S, self._first_wait * 2.0 ** min(failures, 16)))
            self._pending.wake.clear()
            self._pending.hurry.clear()
            try:
                wrote = await self._writer.write_round()
                if not self.up:
                    if not wrote:
                        await self._writer.store.ping()
                    self._back()
            except StoreError as error:
                failures += 1
                self._failed(error)
            except Exception as error:  # noqa: BLE001 - one session's fault must not end the writing of all
                failures += 1
                report("session_store", error, failures)
                await asyncio.sleep(min(LONGEST_WAIT_S, self._first_wait * 2.0 ** min(failures, 16)))
            else:
                failures = 0

    async def _gather(self) -> None:
        """Let changes gather for a round, unless one of them is waited for, or there are enough for one."""
        if self._pending.hurry.is_set() or self._pending.many:
            return
        timer = self._loop.call_later(self._pace, self._pending.hurry.set)
        try:
            await self._pending.hurry.wait()
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Write what has changed, within reason, and let go of the store."""

        async def wait() -> None:
            while self.up and self._pending:
                await self._pending.wait_for_round(*self._pending.changed)

        try:
            await within(SAVE_TIMEOUT_S, wait())
        except asyncio.TimeoutError:
            log.warning("sessions_not_saved", sessions=len(self._pending.changed))

    async def stop(self) -> None:
        """End what runs, and let go of the store, without writing anything."""
        self._pending.close()
        await self._background.cancel()
        await self._writer.store.close()

    # Whether the store answers

    def _failed(self, error: StoreError) -> None:
        self._metrics.failed()
        if self.up:
            self.up = False
            self._metrics.up.set(0)
            self._pending.wake.set()
            self._pending.let_go()
            log.error(
                "session_store_lost",
                reason=str(error),
                consequence="turns go on from memory; what changes is written when the store answers again",
            )

    def _back(self) -> None:
        self.up = True
        self._metrics.up.set(1)
        self._pending.wake.set()
        log.info("session_store_back", sessions_to_write=len(self._pending.changed))
