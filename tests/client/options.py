"""The command line that all commands share."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from typing import Any

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
PERSONALITIES = ("wholesome", "savage", "flirty", "religious", "delulu")


@dataclass(frozen=True)
class Options:
    """Where to connect and how to begin a turn."""

    url: str
    api_key: str | None = None
    recv_timeout: float = 60.0
    chat_prompt: bool = True
    gender: str | None = None
    personality: str = "wholesome"
    sampling: dict[str, float] = field(default_factory=dict)

    def start_fields(self, session_id: str, persona_text: str | None = None) -> dict[str, Any]:
        """What every `start` of this run carries."""
        fields: dict[str, Any] = {"session_id": session_id, "personality": self.personality}
        if self.gender:
            fields["gender"] = self.gender
        if self.chat_prompt and persona_text:
            fields["chat_prompt"] = persona_text
        if self.sampling:
            fields["sampling"] = self.sampling
        return fields


def websocket_url(server: str) -> str:
    """A full WebSocket address from what people type.

    >>> websocket_url("localhost:8000")
    'ws://localhost:8000/ws'
    >>> websocket_url("https://example.com/")
    'wss://example.com/ws'
    """
    for plain, socket in (("https://", "wss://"), ("http://", "ws://")):
        if server.startswith(plain):
            server = socket + server[len(plain) :]
    if "://" not in server:
        server = "ws://" + server
    address, mark, query = server.partition("?")
    address = address.rstrip("/")
    if not address.endswith("/ws"):
        address += "/ws"
    return address + mark + query


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the shared options; commands add their own."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = result.add_argument
    default_url = os.environ.get("SERVER_WS_URL", "ws://127.0.0.1:8000/ws")
    add("--server", "--url", dest="server", default=default_url, help="address; /ws is appended if missing")
    add("--api-key", default=os.environ.get("TEXT_API_KEY"), help="key (else TEXT_API_KEY)")
    add(
        "--recv-timeout",
        type=float,
        default=float(os.environ.get("RECV_TIMEOUT_SEC", "60")),
        help="seconds of silence before giving up",
    )
    add("--no-chat-prompt", action="store_true", help="send no system prompt (implied for tool-only deployments)")
    add("--gender", default=os.environ.get("GENDER"), help="woman, man, female or male")
    personality = os.environ.get("PERSONALITY") or os.environ.get("PERSONA_STYLE") or "wholesome"
    add("--personality", "--persona-style", default=personality, help="letters, at most 20")
    for name in SAMPLING:
        kind = int if name == "top_k" else float
        dashed = "--" + name.replace("_", "-")
        add(*dict.fromkeys([f"--{name}", dashed]), dest=name, type=kind, default=None, help="sampling override")
    return result


def read_options(arguments: argparse.Namespace) -> Options:
    """The shared part of parsed arguments."""
    tool_only = os.environ.get("DEPLOY_MODE") == "tool" or os.environ.get("DEPLOY_CHAT") == "0"
    # A comma-separated list is how the server is given several keys; a client uses the first.
    key = arguments.api_key.split(",")[0].strip() if arguments.api_key else None
    return Options(
        url=websocket_url(arguments.server),
        api_key=key,
        recv_timeout=arguments.recv_timeout,
        chat_prompt=not (arguments.no_chat_prompt or tool_only),
        gender=arguments.gender,
        personality=arguments.personality,
        sampling={name: getattr(arguments, name) for name in SAMPLING if getattr(arguments, name) is not None},
    )
