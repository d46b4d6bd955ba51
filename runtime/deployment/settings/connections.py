"""How many connections, messages and requests a client may have, and how long."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import BaseSettings, NoDecode

from runtime import defaults
from runtime.deployment.settings.declaring import STRIPPED, listed, var


class ConnectionSettings(BaseSettings):
    """Connections over both doors, and their limits."""

    # OpenAI's API
    openai_api: bool = var(True, "serve OpenAI's chat completions under `/v1` beside the WebSocket")
    served_model_names: Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)] = var(
        (), "names of the model under `/v1`, comma separated, the first one listed; the model's own on the hub"
    )
    http_max_requests_per_window: int | None = var(
        None,
        "requests under `/v1` of one key's holder in WS_MESSAGE_WINDOW_SECONDS; WS_MAX_MESSAGES_PER_WINDOW for each "
        "connection that it may have: MAX_CONNECTIONS_PER_KEY, or all slots; 0: no limit",
        ge=0,
    )

    # Connections
    max_concurrent_connections: int = var(defaults.CONNECTIONS, "connection slots", ge=1)
    max_connections_per_key: int | None = var(
        None, "connections of one key's holder; with one holder all slots, with several half of them", ge=1
    )
    ws_handshake_acquire_timeout_s: float = var(defaults.HANDSHAKE_TIMEOUT_S, "longest wait for a slot", unit="s", ge=0)
    handshake_deadline_s: float = var(
        defaults.HANDSHAKE_DEADLINE_S,
        "time in which a socket must be admitted or its request answered; then it is dropped",
        unit="s",
        gt=0,
    )
    http_keep_alive_s: float = var(
        defaults.KEEP_ALIVE_S,
        "longest silence between an answer over HTTP and the next request on its connection; what stands before the "
        "server keeps connections for less",
        unit="s",
        gt=0,
    )
    max_unadmitted_sockets: int | None = var(
        None,
        "open sockets that hold no slot; beyond it the one that was silent longest is dropped; "
        f"{defaults.UNADMITTED} and one a slot, or what the limit of open files leaves",
        ge=1,
    )
    ws_idle_timeout_s: float = var(
        defaults.IDLE_TIMEOUT_S, "silence after which a connection is closed", unit="s", gt=0
    )
    ws_close_idle_code: int = var(defaults.IDLE_CLOSE_CODE, "close code of an idle connection", ge=3000, le=4999)
    ws_max_message_bytes: int = var(
        defaults.MESSAGE_BYTES, "largest inbound frame, and largest body of a request", unit="bytes", ge=1024
    )
    ws_cancel_sentinel: Annotated[str, STRIPPED] = var(
        defaults.CANCEL_SENTINEL, "raw text frame that means `cancel`; spaces around it do not count", min_length=1
    )
    ws_end_sentinel: Annotated[str, STRIPPED] = var(
        defaults.END_SENTINEL, "raw text frame that means `end`; spaces around it do not count", min_length=1
    )

    # Rate limits; 0 disables
    ws_max_messages_per_window: int = var(
        defaults.MESSAGES, "messages per connection and window, counted on after a reconnect; 0: no limit", ge=0
    )
    ws_message_window_seconds: float = var(
        defaults.MESSAGE_WINDOW_S, "sliding window of the message limit", unit="s", gt=0
    )
    ws_max_cancels_per_window: int = var(
        defaults.CANCELS, "cancels per connection and window, counted on after a reconnect; 0: no limit", ge=0
    )
    ws_cancel_window_seconds: float = var(
        defaults.CANCEL_WINDOW_S, "sliding window of the cancel limit", unit="s", gt=0
    )
    ws_max_prepares_per_window: int = var(
        defaults.PREPARES, "`prepare`s per connection and window, counted on after a reconnect; 0: no limit", ge=0
    )
    ws_prepare_window_seconds: float = var(defaults.PREPARE_WINDOW_S, "sliding window of that limit", unit="s", gt=0)
    chat_prompt_update_max_per_window: int = var(
        defaults.PERSONA_UPDATES, "persona updates per session and window; 0: no limit", ge=0
    )
    chat_prompt_update_window_seconds: float = var(
        defaults.PERSONA_UPDATE_WINDOW_S, "sliding window of that limit", unit="s", gt=0
    )

    def requests_per_window(self) -> int:
        """Requests over HTTP that one key's holder may make in a window; 0 where any number.

        An agent speaks for all of its listeners with one key. Over `/ws` each of them would have a connection with
        a window of its own, so by default the holder has here what all of its connections have together there.
        """
        slots = self.max_concurrent_connections
        connections = min(slots, defaults.first_set(self.max_connections_per_key, default=slots))
        return defaults.first_set(
            self.http_max_requests_per_window, default=self.ws_max_messages_per_window * connections
        )
