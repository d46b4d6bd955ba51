"""Outbound frames: what the server sends, one struct a frame, written by one reused encoder.

Field order is wire order. `request_id` comes last and is left out when the client sent none.
"""

from __future__ import annotations

import msgspec

RequestId = str | int | float

# Close codes, of RFC 6455 and its registry. The one for idle connections is a setting.
CLOSE_NORMAL = 1000
CLOSE_GOING_AWAY = 1001
CLOSE_ABNORMAL = 1006  # never sent: the socket ended without a close frame
CLOSE_POLICY = 1008
CLOSE_TRY_LATER = 1013


class Frame(msgspec.Struct, tag_field="type", omit_defaults=True, kw_only=True):
    """Base of every frame."""

    request_id: RequestId | None = None


class Ack(Frame, tag="ack"):
    """A turn was accepted; what follows belongs to it.

    Attributes:
        to: the message's type; `for` on the wire.
        ok: always true.
        session_id: the session that the turn belongs to.
        now: the server's time, RFC 3339, UTC.
        gender, personality: what the session has.
        chat_prompt: whether the session has a persona.
        user_identity: what the session has; left out when it has none.
        warning: fields of the message that were ignored and look misspelt; left out when there are none.
    """

    to: str = msgspec.field(name="for")
    ok: bool
    session_id: str
    now: str
    gender: str | None
    personality: str | None
    chat_prompt: bool
    user_identity: str | None = None
    warning: list[str] = msgspec.field(default_factory=list)


class ChatPromptAck(Frame, tag="ack"):
    """The answer to `chat_prompt`, whatever it is.

    Attributes:
        to: `chat_prompt`; `for` on the wire.
        ok: whether it was acted upon, or changes nothing.
        code: 200 updated, 204 no change; above 300 it was refused.
        message: a sentence for people.
        error_code, field, expected, found, retry_in: those of an `error`, where it was refused.
        warning: as that of `Ack`.
    """

    to: str = msgspec.field(name="for")
    ok: bool
    code: int
    message: str
    error_code: str | None = None
    field: str | None = None
    expected: str | None = None
    found: str | None = None
    retry_in: int | None = None
    warning: list[str] = msgspec.field(default_factory=list)


class HeardAck(Frame, tag="ack"):
    """The answer to `heard`.

    Attributes:
        to: `heard`; `for` on the wire.
        ok: always true.
        session_id: where the reply was said.
        chars: of the reply, so many characters were heard.
        warning: as that of `Ack`.
    """

    to: str = msgspec.field(name="for")
    ok: bool
    session_id: str
    chars: int
    warning: list[str] = msgspec.field(default_factory=list)


class ToolCall(Frame, tag="toolcall"):
    """The classifier's decision.

    Attributes:
        status: `yes` where any tool is asked for.
        raw: each tool that is asked for, by `name`; with several to choose from also its `probability`.
    """

    status: str
    raw: list[dict[str, str | float]]


class Token(Frame, tag="token"):
    """A piece of the reply, never empty."""

    text: str


class Final(Frame, tag="final"):
    """The whole reply: exactly the `token` texts, joined."""

    normalized_text: str


class Usage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a turn cost. Times in milliseconds.

    Attributes:
        prompt_tokens: of the prompt.
        cached_tokens: those of the prompt that came out of the prefix cache.
        completion_tokens: everything that was generated.
        thinking_tokens: those of them that were no speech; left out where there were none.
        finish_reason: `stop` or `length`.
        ttft_ms: from the message's arrival to the first spoken token; null where nothing was spoken.
        duration_ms: from the message's arrival to the end.
        prepared: whether a `prepare` had the reply begun before; left out where none had.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    thinking_tokens: int = 0
    finish_reason: str
    ttft_ms: float | None
    duration_ms: float
    prepared: bool = False


class Done(Frame, tag="done"):
    """The end of a turn, and the answer to `cancel`."""

    usage: Usage | None = None
    cancelled: bool = False
    failed: bool = False


class Pong(Frame, tag="pong"):
    """The answer to `ping`."""


class Warmed(Frame, tag="warmed"):
    """The prefix is in the engine's cache.

    Attributes:
        segment: which prefix.
        tokens: those that a prompt can take out of the cache; it keeps whole blocks alone.
        bytes: of UTF-8 text that the prefix was made of.
        warning: as that of `Ack`.
    """

    segment: str
    tokens: int
    bytes: int
    warning: list[str] = msgspec.field(default_factory=list)


class ConnectionClosed(Frame, tag="connection_closed"):
    """The answer to `end`."""

    reason: str


class Capacity(msgspec.Struct, kw_only=True):
    """Connection slots, at the moment the frame was made."""

    active: int
    max: int
    available: int
    at_capacity: bool


class Error(Frame, tag="error"):
    """Something was not done.

    Attributes:
        error_code: one of those in docs/protocol.md.
        message: a sentence for people.
        field, expected, found: what is wrong with a message, where one field is to blame.
        capacity: the slots, where the server is full.
        retry_in: whole seconds, where waiting helps.
    """

    error_code: str
    message: str
    field: str | None = None
    expected: str | None = None
    found: str | None = None
    capacity: Capacity | None = None
    retry_in: int | None = None


class Draining(Frame, tag="draining"):
    """The server is going away and takes no new turns.

    Attributes:
        deadline_s: seconds that running turns have left.
        reconnect: always true: another server goes on, or this one again.
    """

    deadline_s: int
    reconnect: bool = msgspec.field(default_factory=lambda: True)  # a plain default would not be written


_encoder = msgspec.json.Encoder()


def encode(frame: Frame) -> str:
    """One text frame's payload.

    >>> encode(Token(text="Sure", request_id=7))
    '{"type":"token","text":"Sure","request_id":7}'
    """
    return _encoder.encode(frame).decode()
