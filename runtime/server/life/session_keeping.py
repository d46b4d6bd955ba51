"""What a server keeps of sessions between their turns, and where, as its settings have it."""

from __future__ import annotations

import structlog

from runtime.deployment.metrics import Metrics
from runtime.deployment.settings import RuntimeSettings
from runtime.engines import Sampling
from runtime.host.ratelimit import SlidingWindow
from runtime.turns.sessions.exchange import Exchange
from runtime.turns.sessions.keeper import SessionKeeper
from runtime.turns.sessions.registry import SessionRegistry
from runtime.turns.sessions.session import Session
from runtime.turns.stores.interface import Store
from runtime.turns.stores.sealing import Sealer

log = structlog.get_logger(__name__)


def store_of(settings: RuntimeSettings) -> Store | None:
    """Where sessions are kept beyond this process; none where nobody asked for it."""
    where = settings.store()
    if where is None:
        return None
    from runtime.turns.stores.valkey_store import ValkeyStore

    store = ValkeyStore(
        where.address,
        password=where.password,
        ca_file=where.ca_file,
        ttl=settings.session_idle_ttl_seconds,
        timeout=settings.session_store_timeout_s,
    )
    log.info("session_store", address=str(where.address), encrypted=bool(where.keys))
    return store


def keeper_of(settings: RuntimeSettings, store: Store | None, metrics: Metrics) -> SessionKeeper | None:
    """What keeps sessions in a store; none where there is none."""
    if store is None:
        return None
    where = settings.store()
    exchange = Exchange(
        Sealer(where.keys if where is not None else ()),
        metrics.session_store,
        bounds=settings.bounds(),
        max_bytes=settings.session_store_max_bytes,
    )
    return SessionKeeper(store, exchange, metrics.session_store)


def registry_of(settings: RuntimeSettings, sampling: Sampling, keeper: SessionKeeper | None) -> SessionRegistry:
    """The sessions of a server, none yet.

    Args:
        settings: the environment.
        sampling: how replies are drawn where nobody says otherwise.
        keeper: keeps them beyond this process; none where nobody asked for it.
    """
    prefixes = (settings.check_screen_prefix, settings.screen_checked_prefix)

    def new(session_id: str) -> Session:
        updates = SlidingWindow(settings.chat_prompt_update_max_per_window, settings.chat_prompt_update_window_seconds)
        return Session(session_id, sampling, prefixes, updates)

    return SessionRegistry(
        new,
        idle_ttl=settings.session_idle_ttl_seconds,
        maximum=settings.max_sessions,
        max_bytes=settings.max_session_bytes,
        keeper=keeper,
    )
