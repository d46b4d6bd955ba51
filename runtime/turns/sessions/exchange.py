"""What goes to the store of a session, and what comes from it: sealed, opened, put together, or refused."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from runtime.deployment.store_metrics import StoreMetrics
from runtime.turns.sessions import stored
from runtime.turns.sessions.lease import Lease
from runtime.turns.sessions.session import Session
from runtime.turns.stores import record
from runtime.turns.stores.interface import Found, Leave, Taken, Write
from runtime.turns.stores.record import Record, RecordError, StoredTurn
from runtime.turns.stores.sealing import Sealer, SealError
from runtime.wire.messages import Bound

log = structlog.get_logger(__name__)


class Exchange:
    """Turns sessions into what the store keeps, and back.

    Args:
        sealer: how values are written.
        metrics: counts what was refused.
        bounds: of sampling, as this server allows it.
        max_bytes: of one session, as it is written.
    """

    def __init__(self, sealer: Sealer, metrics: StoreMetrics, *, bounds: Mapping[str, Bound], max_bytes: int) -> None:
        self._sealer = sealer
        self._metrics = metrics
        self._bounds = bounds
        self._max_bytes = max_bytes

    def whole(self, session: Session, lease: Lease) -> Write:
        """A session as it is written; where it does not fit it is removed: rather none than an old one."""
        merged = tuple(lease.merged)
        lease.news = False
        try:
            value = record.encode(stored.record_of(session, lease), self._max_bytes)
        except RecordError as error:
            self._metrics.failed()
            if not lease.too_long:
                lease.too_long = True
                log.warning("session_not_stored", reason=str(error))
            return Write(lease.place, lease.epoch, None, merged)
        place, epoch = lease.place, lease.epoch
        return Write(place, epoch, self._sealer.seal(value, _context(place, epoch)), merged)

    def left(self, lease: Lease, turn: StoredTurn) -> Leave:
        """A turn as it is left beside a session that another server has."""
        value = self._sealer.seal(record.encode_turn(turn), _left_context(lease.place, turn.id))
        return Leave(lease.place, turn.id, value)

    def join(self, session: Session, lease: Lease, taken: Taken) -> bool:
        """Put together what is known of a session that was taken, and what the store has; true where that is news."""
        found = taken.found
        before = lease.epoch
        lease.take(taken.epoch)
        news = False
        # What was not written under a later epoch than our last is what we wrote, or knew when we took the session.
        theirs = self.read(lease.place, found) if not before or found.written > before else None
        if theirs is not None:
            news = True
            if not before and lease.touched:
                stored.put_behind(session, theirs, self._bounds)
            else:
                stored.restore(session, theirs, self._bounds)
        return self.merge(session, lease, found.left) or news

    def merge(self, session: Session, lease: Lease, left: tuple[tuple[str, bytes], ...]) -> bool:
        """Take over turns that lie beside a session in the store; they are removed with the next write."""
        for name, sealed in left:
            if name in lease.merged:
                continue
            lease.touched = True
            try:
                turn = record.decode_turn(self._sealer.open(sealed, _left_context(lease.place, name)))
                if turn.id != name:
                    raise RecordError("it is another turn")
            except (SealError, RecordError) as error:
                self._refuse(error)
                lease.merged.append(name)
                continue
            stored.merge(session, turn)
        return bool(left)

    def read(self, place: str, found: Found) -> Record | None:
        """What lies at a place, as a record; none where there is none, or none that is ours."""
        try:
            if found.foreign:
                raise RecordError("it has another type than a session")
            if found.value is None:
                return None
            return record.decode(self._sealer.open(found.value, _context(place, found.written)))
        except (SealError, RecordError) as error:
            self._refuse(error)
            return None

    def _refuse(self, error: Exception) -> None:
        self._metrics.failed()
        log.warning("session_store_value_refused", reason=str(error), consequence="it counts as none")


def _context(place: str, epoch: int) -> bytes:
    return f"{place}\0{epoch}".encode()


def _left_context(place: str, name: str) -> bytes:
    return f"{place}\0left\0{name}".encode()
