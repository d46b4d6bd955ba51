"""Periodic work: resets of the prefix cache, and the end of idle sessions."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from runtime.deployment.metrics import Metrics
from runtime.engines import Engine
from runtime.host.supervision import repeat
from runtime.turns.sessions.registry import SessionRegistry

log = structlog.get_logger(__name__)

EXPIRY_INTERVAL_S = 30.0


class CacheResetter:
    """Resets the engine's caches now and then, but never what `warm_*` just paid for nor what something runs on."""

    def __init__(
        self, engine: Engine, metrics: Metrics, interval: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._interval = interval
        self._clock = clock
        self._last_warm: float | None = None

    def warmed(self) -> None:
        """Note that something was prefilled on a client's request."""
        self._last_warm = self._clock()

    async def maybe_reset(self) -> bool:
        """Reset the caches unless something runs or was warmed within the interval; return whether it was done."""
        if self._recently_warmed():
            return False
        load = await self._engine.load()
        # Asked again: a prefill may have come to its end while the engine was answering.
        if load.running or load.waiting or self._recently_warmed():
            return False
        return await self.reset_engine_caches()

    def _recently_warmed(self) -> bool:
        return self._last_warm is not None and self._clock() - self._last_warm < self._interval

    async def reset_engine_caches(self) -> bool:
        """Drop the prefix cache now; false when the engine refused because something runs."""
        done = await self._engine.reset_caches()
        if done:
            self._metrics.caches_reset()
            log.info("caches_reset")
        return done

    async def run(self) -> None:
        """Reset the caches for ever, once an interval, unless something is in the way."""
        await repeat("cache_reset", self.maybe_reset, self._interval)


async def refresh_sessions(sessions: SessionRegistry, ttl: float) -> None:
    """Have sessions that a connection keeps written again for ever, so that the store does not let them go before."""

    async def refresh() -> None:
        for session in list(sessions.owned()):
            session.resized()

    await repeat("session_refresh", refresh, ttl / 3)


async def expire_sessions(sessions: SessionRegistry) -> None:
    """Drop idle sessions for ever, every half a minute."""

    async def expire() -> None:
        sessions.expire()

    await repeat("session_expiry", expire, EXPIRY_INTERVAL_S)
