"""Events: what a server sends, one frozen struct a frame, and the one that a client makes itself.

A server may be newer than this package: fields that are not known are ignored, a frame of another type is `Unknown`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from yap_client.errors import ProtocolError, RateLimitError, RefusedError

RequestId = str | int | float

SCREENSHOT_TOOL = "take_screenshot"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True, tag_field="type"):
    """Base of every event.

    Attributes:
        request_id: the id of the message that the event answers.
    """

    request_id: RequestId | None = None


class Ack(Event, frozen=True, tag="ack"):
    """A message was accepted, or a change of the persona was not.

    Attributes:
        to: the message's type: `start`, `followup`, `chat_prompt`, `heard`.
        ok: whether it was acted upon.
        session_id: the session that it was about.
        now: the server's time, RFC 3339.
        gender, personality, user_identity: what the session has.
        chat_prompt: whether the session has a persona.
        code: an answer to `chat_prompt` in the words of HTTP: 200 updated, 204 no change, above 300 refused.
        message: a sentence for people.
        error_code, field, expected, found, retry_in: why it was refused.
        chars: an answer to `heard`: so many characters of the reply are in the history.
        warning: fields that look misspelt, a text for each.
    """

    to: str = msgspec.field(name="for")
    ok: bool
    session_id: str | None = None
    now: str | None = None
    gender: str | None = None
    personality: str | None = None
    user_identity: str | None = None
    chat_prompt: bool | None = None
    code: int | None = None
    message: str | None = None
    error_code: str | None = None
    field: str | None = None
    expected: str | None = None
    found: str | None = None
    retry_in: float | None = None
    chars: int | None = None
    warning: tuple[str, ...] = ()


class Tool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool that is asked for, with its probability where the server tells it."""

    name: str
    probability: float | None = None


class ToolCall(Event, frozen=True, tag="toolcall"):
    """The decision before a reply.

    Attributes:
        status: `yes` where any tool is asked for.
        raw: the tools, most probable first.
    """

    status: str
    raw: tuple[Tool, ...] = ()

    @property
    def tools(self) -> dict[str, float | None]:
        """The tools that are asked for, most probable first, with their probabilities where those are told."""
        return {tool.name: tool.probability for tool in self.raw}

    @property
    def screenshot(self) -> bool:
        """Whether a screenshot is wanted."""
        return self.status == "yes" and SCREENSHOT_TOOL in self.tools


class Token(Event, frozen=True, tag="token"):
    """A piece of the reply's text."""

    text: str


class Final(Event, frozen=True, tag="final"):
    """The whole text of the reply."""

    text: str = msgspec.field(name="normalized_text")


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """What a turn cost; times in milliseconds, counted by the server.

    Attributes:
        prompt_tokens: the prompt's.
        cached_tokens: those of them that came out of the prefix cache.
        completion_tokens: everything that was generated.
        thinking_tokens: those of them that were no speech.
        finish_reason: `stop` or `length`.
        ttft_ms: from the message's arrival to the first spoken token; none where nothing was spoken.
        duration_ms: from the message's arrival to the end.
        prepared: whether the reply had been made before it was asked for.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    thinking_tokens: int = 0
    finish_reason: str = "stop"
    ttft_ms: float | None = None
    duration_ms: float = 0.0
    prepared: bool = False


class Done(Event, frozen=True, tag="done"):
    """The end of a turn: one of `usage`, `cancelled` and `failed`. After a failure an `Error` precedes it."""

    usage: Usage | None = None
    cancelled: bool = False
    failed: bool = False


class Pong(Event, frozen=True, tag="pong"):
    """The answer to a ping."""


class Warmed(Event, frozen=True, tag="warmed"):
    """A prefix is in the engine's cache.

    Attributes:
        segment: `persona_static` or `history`.
        tokens: those that the next turn finds there.
        bytes: of text that the prefix was made of.
        warning: as that of `Ack`.
    """

    segment: str
    tokens: int
    bytes: int = 0
    warning: tuple[str, ...] = ()


class ConnectionClosed(Event, frozen=True, tag="connection_closed"):
    """The server closes because the client asked for it."""

    reason: str = ""


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """A server's connection slots."""

    active: int = 0
    max: int = 0
    available: int = 0
    at_capacity: bool = True


class Error(Event, frozen=True, tag="error"):
    """Something was not done.

    Attributes:
        error_code: one of those in the protocol's page.
        message: a sentence for people.
        field, expected, found: what is wrong with a message, where one field is to blame.
        capacity: the slots, where the server is full.
        retry_in: seconds, where waiting helps.
    """

    error_code: str
    message: str = ""
    field: str | None = None
    expected: str | None = None
    found: str | None = None
    capacity: Capacity | None = None
    retry_in: float | None = None


class Draining(Event, frozen=True, tag="draining"):
    """The server goes away and takes no new turns; the client reconnects by itself."""

    deadline_s: float = 0.0
    reconnect: bool = True


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """A frame that this package does not know, of a newer server."""

    type: str
    request_id: RequestId | None = None
    raw: dict[str, Any] = msgspec.field(default_factory=dict)


class Interrupted(Event, frozen=True, tag="interrupted"):
    """The end of a turn that was cut by the loss of its connection. The client makes it; no server sends it.

    Attributes:
        said: the reply's text that had come.
        begun: whether the server had acknowledged the turn.
        reason: why the connection was lost.
    """

    said: str = ""
    begun: bool = False
    reason: str = ""


Frame = Ack | ToolCall | Token | Final | Done | Pong | Warmed | ConnectionClosed | Error | Draining | Unknown
# What a turn yields; the last one is `Done` or `Interrupted`.
TurnEvent = Ack | ToolCall | Token | Final | Error | Done | Interrupted | Unknown

_Known = Ack | ToolCall | Token | Final | Done | Pong | Warmed | ConnectionClosed | Error | Draining


class _Head(msgspec.Struct):
    """What every frame has."""

    type: str
    request_id: RequestId | None = None


_decoder: msgspec.json.Decoder[_Known] = msgspec.json.Decoder(_Known)
_head: msgspec.json.Decoder[_Head] = msgspec.json.Decoder(_Head)
_TYPES = frozenset(
    {"ack", "toolcall", "token", "final", "done", "pong", "warmed", "connection_closed", "error", "draining"}
)
# What a decoder raises: also of texts that are no UTF-8, and of lists in lists in lists.
UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)


def decode(text: str | bytes) -> Frame:
    """Decode a server's frame from its JSON text.

    >>> decode('{"type":"token","text":"Sure,","request_id":"t1","new":1}')
    Token(text='Sure,', request_id='t1')

    Raises:
        ProtocolError: it is none.
    """
    try:
        return _decoder.decode(text)
    except UNREADABLE as wrong:
        try:
            head = _head.decode(text)
            if head.type not in _TYPES:
                return Unknown(type=head.type, request_id=head.request_id, raw=msgspec.json.decode(text))
        except UNREADABLE:
            pass
        shown = text if isinstance(text, str) else text.decode("utf-8", "replace")
        raise ProtocolError(f"the server does not speak this protocol: {wrong}, found {shown[:80]!r}") from None


def refusal(frame: Error | Ack) -> RefusedError:
    """The error of a frame by which the server refuses a message."""
    code, message = frame.error_code or "refused", frame.message or ""
    if frame.retry_in is not None:
        return RateLimitError(code, message, retry_in=frame.retry_in)
    return RefusedError(code, message, field=frame.field, expected=frame.expected, found=frame.found)
