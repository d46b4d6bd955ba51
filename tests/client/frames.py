"""The frames that a server sends, as Python types."""

from __future__ import annotations

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Frame:
    """A frame from the server: its type and everything that it carried."""

    type: str
    raw: dict = field(repr=False)

    @property
    def request_id(self) -> str | int | None:
        """The id of the message that the frame answers; none where it names none."""
        return self.raw.get("request_id")


@dataclass(frozen=True)
class Ack(Frame):
    """A message was accepted; `code` tells more for `chat_prompt`."""

    about: str
    ok: bool
    code: int | None = None


@dataclass(frozen=True)
class ToolCall(Frame):
    """The decision: `yes` asks the client for a screenshot, or for what other tools the server knows."""

    status: str

    @property
    def tools(self) -> dict[str, float | None]:
        """The tools that are asked for, most probable first, with their probabilities where those are told."""
        return {call["name"]: call.get("probability") for call in self.raw.get("raw", ())}

    @property
    def wanted(self) -> bool:
        """Whether a screenshot is wanted."""
        return self.status == "yes" and "take_screenshot" in self.tools

    @property
    def told(self) -> str:
        """The decision for a person: the status, and the tools where one of them is not the screenshot."""
        if set(self.tools) <= {"take_screenshot"}:
            return self.status
        calls = (name if likely is None else f"{name} {likely:.2f}" for name, likely in self.tools.items())
        return f"{self.status}: {', '.join(calls)}"


@dataclass(frozen=True)
class Token(Frame):
    """A piece of the reply's text."""

    text: str


@dataclass(frozen=True)
class Final(Frame):
    """The whole text of the reply."""

    text: str


@dataclass(frozen=True)
class Done(Frame):
    """The end of a turn; every turn has exactly one, whatever happened."""

    cancelled: bool
    failed: bool
    usage: dict


@dataclass(frozen=True)
class Warmed(Frame):
    """A prefix was warmed."""

    segment: str
    tokens: int


@dataclass(frozen=True)
class Error(Frame):
    """A message or the whole connection was refused, or a turn failed."""

    code: str
    message: str


@dataclass(frozen=True)
class Unknown(Frame):
    """A frame without a type of its own: `pong`, `draining`, `connection_closed`, or one of a later server."""


def parse(text: str) -> Frame:
    """Parse one server frame from its JSON text; raises ValueError when it is none."""
    raw = json.loads(text)
    if not isinstance(raw, dict) or not isinstance(raw.get("type"), str):
        raise ValueError(f"expected an object with a type, found {text[:80]!r}")
    try:
        return _typed(raw["type"], raw)
    except KeyError as missing:
        raise ValueError(f"expected {missing} in {text[:80]!r}") from None


def _typed(kind: str, raw: dict) -> Frame:
    if kind == "ack":
        return Ack(kind, raw, raw["for"], raw["ok"], raw.get("code"))
    if kind == "toolcall":
        return ToolCall(kind, raw, raw["status"])
    if kind == "token":
        return Token(kind, raw, raw["text"])
    if kind == "final":
        return Final(kind, raw, raw["normalized_text"])
    if kind == "done":
        return Done(kind, raw, raw.get("cancelled", False), raw.get("failed", False), raw.get("usage") or {})
    if kind == "warmed":
        return Warmed(kind, raw, raw["segment"], raw["tokens"])
    if kind == "error":
        return Error(kind, raw, raw["error_code"], raw["message"])
    return Unknown(kind, raw)
