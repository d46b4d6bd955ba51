"""The writer: one round of writes after the other, each a single request to the store, and what becomes of each write.

written ──► confirmed
   │
   ├── refused: another server has the session; what was said here is left beside it
   └── no answer: all of the round is pending again; what is written twice is written once
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from runtime.deployment.store_metrics import StoreMetrics
from runtime.turns.sessions.exchange import Exchange
from runtime.turns.sessions.lease import Lease
from runtime.turns.sessions.pending import Pending
from runtime.turns.sessions.session import Session
from runtime.turns.stores.interface import Leave, Outcome, Store, StoreError, Taken, Write
from runtime.turns.stores.record import StoredTurn
from runtime.turns.turn import Stop

# A session, its lease, what was written of it (none: a turn was left beside it), and the turns that this has.
_Written = tuple[Session, Lease, Write | None, Sequence[StoredTurn]]


class Writer:
    """Writes pending sessions.

    Attributes:
        store: where they are kept.
        lost: called with a session that another server has taken over.

    Args:
        store: where they are kept.
        exchange: what is written of them, and read.
        metrics: counts what is done.
        pending: what is to be written.
    """

    def __init__(self, store: Store, exchange: Exchange, metrics: StoreMetrics, pending: Pending) -> None:
        self.store = store
        self.lost: Callable[[Session], None] = lambda session: None
        self._exchange = exchange
        self._metrics = metrics
        self._pending = pending

    async def write_round(self) -> bool:
        """Write what is due, and tell whether that was anything. What cannot be written is due again.

        Raises:
            StoreError: the store does not answer.
        """
        pending = self._pending
        due, gone = pending.begin_round()
        failed = True
        try:
            for session in due:
                lease = session.lease
                if lease is not None and not (lease.epoch or lease.lost or lease.takes):
                    await self._take_first(session, lease)
            if due or gone:
                await self._write(due, gone)
            failed = False
            return bool(due or gone)
        finally:
            pending.end_round(failed=failed, gone=gone)

    def join(self, session: Session, lease: Lease, taken: Taken) -> bool:
        """Put together what is known of a session that was taken, and what the store has; true where that is news."""
        known = lease.epoch != 0
        news = self._exchange.join(session, lease, taken)
        if news:
            session.resized()
        elif taken.found.value is None and known:
            self._pending.note(session)  # the store has forgotten it
        return news

    async def _take_first(self, session: Session, lease: Lease) -> None:
        """Take a session that began while the store did not answer.

        Not from a server to which its client may have gone since: then what was said here is left beside it.
        """
        lease.takes += 1
        try:
            found = await self.store.look(lease.place) if session.owner is None else None
            taken = await self.store.take(lease.place) if found is None or not found.taken else None
        finally:
            lease.takes -= 1
        self._metrics.read()
        if taken is not None:
            self.join(session, lease, taken)
        else:
            self._lose(session, lease)

    async def _write(self, due: list[Session], gone: list[Write]) -> None:
        pending, exchange = self._pending, self._exchange
        changes: list[Write | Leave] = []
        written: list[_Written] = []
        for session in due:
            # What has changed since it was looked at is in what is written now.
            pending.changed.pop(session, None)
            lease = session.lease
            if lease is None or lease.gone:
                continue
            if lease.takes:  # it is being taken again, and is written when that is done
                pending.again(session)
            elif lease.lost:
                for turn in lease.ended:
                    changes.append(exchange.left(lease, turn))
                    written.append((session, lease, None, (turn,)))
            else:
                write = exchange.whole(session, lease)
                changes.append(write)
                written.append((session, lease, write, tuple(lease.ended)))
        if not changes and not gone:
            return
        try:
            outcomes = await self.store.apply([*changes, *gone])
        except StoreError:
            pending.was_not_answered()
            raise
        pending.was_answered(len(due))
        errors: dict[Session, str] = {}
        accepted = 0
        for (session, lease, whole, ended), outcome in zip(written, outcomes, strict=False):
            if outcome.error:
                errors[session] = outcome.error
                continue
            accepted += outcome.accepted
            if whole is not None:
                self._whole_ended(session, lease, whole, ended, outcome)
            else:
                lease.confirm(ended, ())
                if not outcome.accepted:
                    self._metrics.failed()
        if accepted:
            self._metrics.written(accepted)
        gone.clear()
        if errors:  # those again: what is written twice is written once
            for session in due:
                if session not in errors:
                    pending.writing.pop(session, None)
            raise StoreError(next(iter(errors.values())))

    def _whole_ended(
        self, session: Session, lease: Lease, write: Write, ended: Sequence[StoredTurn], outcome: Outcome
    ) -> None:
        if outcome.accepted:
            lease.confirm(ended, write.merged)
            if outcome.left and self._exchange.merge(session, lease, outcome.left):
                session.resized()
        elif lease.epoch != write.epoch or lease.takes:  # it has been taken again meanwhile
            self._pending.again(session)
        else:
            self._lose(session, lease)

    def _lose(self, session: Session, lease: Lease) -> None:
        """Another server has the session: end its turn here, and leave what was said where that server finds it."""
        lease.lost = True
        self._metrics.lost()
        self.lost(session)
        session.owner = LOST  # the connection has no session until its next `start`
        session.resized = partial(self._pending.note, session)
        if session.turn is not None:
            session.turn.stop(Stop.BARGE_IN)
        if lease.ended:
            self._pending.note(session)


# The owner of a session that another server has.
LOST = object()
