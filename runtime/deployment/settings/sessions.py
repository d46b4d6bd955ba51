"""What is kept between turns, how much of it, and where else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic_settings import BaseSettings

from runtime import defaults
from runtime.deployment import session_store
from runtime.deployment.session_store import StoreSettings, StoreSettingsError
from runtime.deployment.settings.declaring import STRIPPED, SettingsError, var


class SessionSettings(BaseSettings):
    """Sessions in memory and in the store."""

    session_idle_ttl_seconds: float = var(1800, "how long a session outlives its connection", unit="s", gt=0)
    max_sessions: int = var(defaults.SESSIONS, "sessions kept", ge=1)
    max_sessions_per_key: int | None = var(
        None,
        "sessions kept of one key's holder; beyond it its own oldest without a connection go. MAX_SESSIONS, "
        "shared equally among the holders",
        ge=1,
    )
    max_session_bytes: int = var(defaults.SESSION_BYTES, "memory of all sessions' texts", unit="bytes", ge=1_048_576)
    max_session_bytes_per_key: int | None = var(
        None,
        "the same for one key's holder; MAX_SESSION_BYTES, shared equally among the holders",
        unit="bytes",
        ge=1_048_576,
    )

    session_store: Annotated[str, STRIPPED] = var(
        session_store.MEMORY,
        "where sessions are kept for other servers: `memory` for nowhere, or `valkey://[user@]host[:6379][/0]`, "
        "`rediss://…` for TLS",
    )
    session_store_password_file: Path | None = var(None, "file with the password of that server's user")
    session_store_ca_file: Path | None = var(
        None, "certificates (PEM) that its certificate must come from, for `rediss://`; the system's"
    )
    session_store_key_file: Path | None = var(
        None,
        "file with keys that encrypt what is written there, a line each: 32 bytes in hexadecimal or base64; the first "
        "encrypts, all decrypt",
    )
    session_store_timeout_s: float = var(defaults.STORE_TIMEOUT_S, "longest wait for the store", unit="s", gt=0, le=10)
    session_store_max_bytes: int = var(
        defaults.STORED_SESSION_BYTES,
        "what it keeps of one session; beyond it the oldest of the history go",
        unit="bytes",
        ge=4096,
        le=16_777_216,
    )

    def store(self) -> StoreSettings | None:
        """Where sessions are kept beyond this process; none where they are not.

        Raises:
            SettingsError: the address is none, or a file cannot be read.
        """
        try:
            return session_store.gather(
                self.session_store,
                password_file=self.session_store_password_file,
                key_file=self.session_store_key_file,
                ca_file=self.session_store_ca_file,
            )
        except StoreSettingsError as error:
            raise SettingsError(list(error.problems)) from None
