"""What is counted of the session store."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

STORE_OPERATIONS = ("read", "write", "failure", "conflict")


class StoreMetrics:
    """What is told of the session store.

    Attributes:
        up: whether it answers; 1 where there is none.
        lag: seconds since the oldest change that is not written.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.up = Gauge("yap_session_store_up", "Whether the session store answers", registry=registry)
        self.up.set(1)
        self.lag = Gauge(
            "yap_session_store_lag_seconds", "Age of the oldest change that is not in the store", registry=registry
        )
        self._operations = Counter(
            "yap_session_store_operations", "What was asked of the session store", ["kind"], registry=registry
        )
        self._of = {kind: self._operations.labels(kind) for kind in STORE_OPERATIONS}  # looking one up costs more

    def read(self) -> None:
        """Count a session that was taken, or looked at."""
        self._of["read"].inc()

    def written(self, number: int) -> None:
        """Count sessions, and turns, that were written."""
        self._of["write"].inc(number)

    def failed(self) -> None:
        """Count what the store did not do, and what lay in it and was refused."""
        self._of["failure"].inc()

    def lost(self) -> None:
        """Count a session that another server has taken over."""
        self._of["conflict"].inc()
