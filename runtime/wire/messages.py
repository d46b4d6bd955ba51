"""Inbound messages: what a client may say, the parts of the grammar that the operator sets, and the refusal.

Needs neither a socket nor an engine. `runtime.wire.decoder` turns text frames into these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from runtime import defaults
from runtime.text.prompt import Message
from runtime.wire.frames import RequestId

MAX_STYLE_CHARS = 20
MAX_PREFIX_CHARS = 30
MAX_STOPS = 4
MAX_STOP_CHARS = 64
# Whole numbers that every engine's random generator takes.
MAX_SEED = 2**63 - 1
# No reply is as long.
MAX_CHARS = 2**31
# A number may come as a string. None needs more digits than this, and what a longer one costs is not paid.
MAX_NUMBER_CHARS = 64
# Of a longer history the newest are taken: no session keeps more.
MAX_HISTORY_MESSAGES = 2_048
# Identifiers are echoed or kept for as long as a session lives, so their size is bounded.
MAX_IDENTIFIER_CHARS = 256

GENDERS = ("woman", "man", "female", "male")
IDENTITIES = ("woman", "man", "non-binary")


class Rejected(Exception):
    """A message that is refused and changes nothing.

    Attributes:
        code: the error code of docs/protocol.md.
        message: a sentence for people.
        field, expected, found: set where one field is to blame.
        kind: the message's type, where it is known.
        request_id: the message's, where it has one.
        retry_in: seconds after which it may come again, where it came too early.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        expected: str | None = None,
        found: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.expected = expected
        self.found = found
        self.kind: str | None = None
        self.request_id: RequestId | None = None
        self.retry_in: int | None = None

    def limit(self, retry_in: int, code: str = "message_rate_limited") -> None:
        """Say instead that the message came too early: what is wrong with it costs more to tell."""
        self.code, self.message = code, f"Too many messages; try again in {retry_in} s."
        self.field = self.expected = self.found = None
        self.retry_in = retry_in


@dataclass(frozen=True, slots=True)
class Bound:
    """The range of one sampling parameter, both ends included."""

    low: float
    high: float
    whole: bool = False

    def __str__(self) -> str:
        low, high = (int(end) if float(end).is_integer() else end for end in (self.low, self.high))
        return f"{'a whole number' if self.whole else 'a number'} from {low} to {high}"


DEFAULT_BOUNDS: Mapping[str, Bound] = MappingProxyType(
    {
        "temperature": Bound(0, 1.2),
        "top_p": Bound(0.6, 1),
        "top_k": Bound(0, 60, whole=True),
        "min_p": Bound(0, 0.2),
        "repetition_penalty": Bound(1, 1.3),
        "presence_penalty": Bound(0, 0.5),
        "frequency_penalty": Bound(0, 0.5),
    }
)


@dataclass(frozen=True, slots=True)
class Grammar:
    """The parts of the protocol that the operator may set.

    Attributes:
        bounds: ranges of the sampling parameters.
        cancel_sentinel: the raw text that means `cancel`.
        end_sentinel: the raw text that means `end`.
        max_tokens: the longest reply that a client may ask for.
    """

    bounds: Mapping[str, Bound] = field(default_factory=lambda: DEFAULT_BOUNDS)
    cancel_sentinel: str = defaults.CANCEL_SENTINEL
    end_sentinel: str = defaults.END_SENTINEL
    max_tokens: int = defaults.OUTPUT_TOKENS


@dataclass(frozen=True, slots=True)
class SamplingChange:
    """The sampling parameters that a message names; the others keep their defaults.

    Attributes:
        values: the bounded numbers.
        sanitize: whether the reply is made fit to be spoken.
        max_tokens: bounds the reply.
        stop: texts that end the reply.
        seed: makes the reply repeatable.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    sanitize: bool | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Inbound:
    """Base of every message.

    Attributes:
        request_id: echoed in what answers it.
        warnings: fields that it should not have, a line each.
    """

    request_id: RequestId | None = None
    warnings: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True)
class Start(Inbound):
    """Begin a turn. None means: the message does not say, so the session's value stays.

    Attributes:
        session_id: the client's name for the session.
        gender, personality, user_identity: labels that the session keeps.
        persona: the system prompt.
        history: replaces the session's.
        utterance: the user's words.
        runtime_text: follows the persona in this turn.
        sampling: the parameters that the message names.
        check_screen_prefix: precedes the utterance after a tool decision yes.
        screen_checked_prefix: precedes the analysis of a followup.
        traceparent: the client's span, as W3C Trace Context writes it.
    """

    session_id: str = ""
    gender: str | None = None
    personality: str | None = None
    persona: str | None = None
    user_identity: str | None = None
    history: tuple[Message, ...] | None = None
    utterance: str = ""
    runtime_text: str = ""
    sampling: SamplingChange = SamplingChange()
    check_screen_prefix: str | None = None
    screen_checked_prefix: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Prepare(Inbound):
    """Make the reply to a `start` that may follow, and hold it back.

    Not a kind of `Start`: it begins no turn, and ends none.

    Attributes:
        start: what the `start` would say.
    """

    start: Start = Start()


@dataclass(frozen=True, slots=True)
class Followup(Inbound):
    """Begin a turn without a tool decision, about what was seen on the screen.

    Here and below, `session_id` is None where the message means the session of the connection's last `start`.
    """

    session_id: str | None = None
    analysis: str = ""
    sampling: SamplingChange = SamplingChange()
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class ChatPrompt(Inbound):
    """Replace the session's persona."""

    session_id: str | None = None
    persona: str = ""
    gender: str | None = None
    personality: str | None = None


@dataclass(frozen=True, slots=True)
class WarmPersona(Inbound):
    """Prefill the system prompt."""

    persona: str = ""


@dataclass(frozen=True, slots=True)
class WarmHistory(Inbound):
    """Prefill system prompt and history."""

    session_id: str | None = None
    history: tuple[Message, ...] = ()
    persona: str | None = None
    runtime_text: str = ""


@dataclass(frozen=True, slots=True)
class Heard(Inbound):
    """Say how much of a reply the listener got; `request_id` is that of the reply's turn, none for the last one.

    Attributes:
        session_id: where it was said; none for this connection's last turn.
        text: what was heard; wins.
        chars: the length of that.
    """

    session_id: str | None = None
    text: str | None = None
    chars: int | None = None


@dataclass(frozen=True, slots=True)
class Cancel(Inbound):
    """Abort the running turn."""


@dataclass(frozen=True, slots=True)
class End(Inbound):
    """Close the connection."""


@dataclass(frozen=True, slots=True)
class Ping(Inbound):
    """Ask for a `pong`."""


@dataclass(frozen=True, slots=True)
class Pong(Inbound):
    """A sign of life; nothing follows."""
