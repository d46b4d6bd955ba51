"""The principals: who may talk to a server, and what each of them has of it."""

from __future__ import annotations

import asyncio

import structlog

from runtime.deployment.principal_metrics import PrincipalFigures
from runtime.deployment.settings import RuntimeSettings, SettingsError
from runtime.host import logs
from runtime.host.ratelimit import SlidingWindow
from runtime.server.auth import Credential, Keyring
from runtime.server.life.admitted import Admitted, close_removed
from runtime.server.quotas import Seats, connections_for_each, share_for_each
from runtime.turns.sessions.registry import SessionRegistry

log = structlog.get_logger(__name__)


class Principals:
    """All principals of a server, by the keys that they have now.

    Args:
        settings: the environment.
        slots: connections that all of them may have together.

    Attributes:
        keyring: who may connect.
        seats: what each has of connections and messages.
        credentials: the keys that those came with that are connected.
        sessions: those that are kept; none before the models are loaded.
    """

    def __init__(self, settings: RuntimeSettings, slots: int) -> None:
        self._settings = settings
        self._slots = slots
        self.keyring = Keyring(settings.keys(), separate_caches=settings.cache_sharing == "key")
        self.seats = Seats(
            self.connections_for_each,
            lambda: SlidingWindow(settings.ws_max_messages_per_window, settings.ws_message_window_seconds),
            lambda: SlidingWindow(settings.ws_max_cancels_per_window, settings.ws_cancel_window_seconds),
            lambda: SlidingWindow(settings.requests_per_window(), settings.ws_message_window_seconds),
            lambda: SlidingWindow(settings.ws_max_prepares_per_window, settings.ws_prepare_window_seconds),
        )
        self.credentials: dict[Admitted, Credential] = {}
        self.sessions: SessionRegistry | None = None
        self._reloading = asyncio.Lock()  # one reading of the keys at a time: the last one counts

    def connections_for_each(self) -> int | None:
        """Connections that each principal may have; none where only the slots limit them."""
        return connections_for_each(self._settings.max_connections_per_key, self._slots, len(self.keyring))

    def keep(self, sessions: SessionRegistry) -> None:
        """Share the sessions that are kept among the principals."""
        self.sessions = sessions
        self._share_sessions()

    async def reload(self) -> None:
        """Read the keys anew. Those that are gone lose their connections; the others notice nothing."""
        async with self._reloading:
            try:
                keys = await asyncio.to_thread(self._settings.keys)
            except SettingsError as error:
                # Without the variable's name: what stands behind one that speaks of keys is hidden from the log.
                problems = [problem.partition(": ")[2] for problem in error.problems]
                log.error("keys_not_reloaded", problems=problems, next_step="the keys from before still hold")
                return
            await asyncio.to_thread(logs.hide, [key.secret for key in keys])  # up to a second for thousands
            gone = self.keyring.replace(keys)
        closed = [
            connection for connection, credential in self.credentials.items() if not self.keyring.holds(credential)
        ]
        for connection in closed:
            close_removed(connection)
        for principal in gone:
            self.seats.forget(principal)
            if self.sessions is not None:
                self.sessions.forget(principal)
        self._share_sessions()
        log.info("keys_reloaded", keys=len(keys), principals=len(self.keyring), gone=len(gone), closed=len(closed))

    def figures(self) -> list[PrincipalFigures]:
        """What each principal has, and has used."""
        figures = []
        for principal in self.keyring.principals:
            sessions, size = self.sessions.kept(principal) if self.sessions is not None else (0, 0)
            figures.append(
                PrincipalFigures(
                    name=principal.name,
                    connections=self.seats.taken(principal),
                    sessions=sessions,
                    session_bytes=size,
                    turns=principal.turns,
                    prompt_tokens=principal.prompt_tokens,
                    cached_tokens=principal.cached_tokens,
                    completion_tokens=principal.completion_tokens,
                    refused=principal.refused,
                )
            )
        return figures

    def _share_sessions(self) -> None:
        settings, principals = self._settings, len(self.keyring)
        if self.sessions is not None:
            self.sessions.set_quota(
                share_for_each(settings.max_sessions_per_key, settings.max_sessions, principals),
                share_for_each(settings.max_session_bytes_per_key, settings.max_session_bytes, principals),
            )
