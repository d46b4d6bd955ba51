"""What a client may say: text frames in, validated messages out. Needs neither a socket nor an engine.

`Decoder.decode` returns one of the message classes below or raises `Rejected`, which carries everything that the one
answering frame needs. There is no third way: any text gives one or the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from runtime.frames import RequestId
from runtime.prompt import Message

MAX_STYLE_CHARS = 20
MAX_PREFIX_CHARS = 30
# Identifiers are echoed or kept for as long as a session lives, so their size is bounded.
MAX_IDENTIFIER_CHARS = 256

GENDERS = ("woman", "man", "female", "male")
IDENTITIES = ("woman", "man", "non-binary")
TURN_TYPES = frozenset({"start", "followup"})


class Rejected(Exception):
    """A message that changes nothing: its error code, and a sentence for people.

    `field`, `expected` and `found` are set where one field is to blame; `kind` is the message's type where it is known.
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


@dataclass(frozen=True, slots=True)
class Bound:
    """The range of one sampling parameter, both ends included."""

    low: float
    high: float
    whole: bool = False

    def __str__(self) -> str:
        return f"{'a whole number' if self.whole else 'a number'} from {self.low:g} to {self.high:g}"


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
    """The parts of the protocol that the operator may set."""

    bounds: Mapping[str, Bound] = field(default_factory=lambda: DEFAULT_BOUNDS)
    cancel_sentinel: str = "__CANCEL__"
    end_sentinel: str = "__END__"


@dataclass(frozen=True, slots=True)
class SamplingChange:
    """The sampling parameters that a message names; the others keep their defaults."""

    values: Mapping[str, float] = field(default_factory=dict)
    sanitize: bool | None = None


@dataclass(frozen=True, slots=True)
class Inbound:
    """Base of every message."""

    request_id: RequestId | None = None


@dataclass(frozen=True, slots=True)
class Start(Inbound):
    """Begin a turn. None means: the message does not say, so the session's value stays."""

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


@dataclass(frozen=True, slots=True)
class Followup(Inbound):
    """Begin a turn without a tool decision, about what was seen on the screen.

    Here and below, `session_id` is None where the message means the session of the connection's last `start`.
    """

    session_id: str | None = None
    analysis: str = ""
    sampling: SamplingChange = SamplingChange()


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


class Decoder:
    """Turns text frames into messages."""

    def __init__(self, grammar: Grammar | None = None) -> None:
        self._grammar = grammar or Grammar()
        self._json = msgspec.json.Decoder()
        self._readers: dict[str, Callable[[Fields], Inbound]] = {
            "start": self._start,
            "followup": self._followup,
            "chat_prompt": self._chat_prompt,
            "warm_persona": self._warm_persona,
            "warm_history": self._warm_history,
            "cancel": lambda fields: Cancel(fields.request_id),
            "end": lambda fields: End(fields.request_id),
            "ping": lambda fields: Ping(fields.request_id),
            "pong": lambda fields: Pong(fields.request_id),
        }

    def decode(self, text: str) -> Inbound:
        """One frame's message.

        Raises:
            Rejected: with the contract's error code.
        """
        bare = text.strip()
        if bare == self._grammar.cancel_sentinel:
            return Cancel()
        if bare == self._grammar.end_sentinel:
            return End()
        fields = Fields(self._object(text))
        try:
            fields.request_id = fields.identifier()
            kind = self._kind(fields)
            reader = self._readers.get(kind)
            if reader is None:
                raise Rejected(
                    "unknown_message_type",
                    f"type: expected one of {', '.join(self._readers)}, found {shown(kind)}",
                    field="type",
                    expected=f"one of {', '.join(self._readers)}",
                    found=shown(kind),
                )
            fields.kind = kind
            return reader(fields)
        except Rejected as rejected:
            rejected.request_id = fields.request_id
            rejected.kind = fields.kind
            raise

    def _object(self, text: str) -> dict[str, object]:
        try:
            raw = self._json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise _not_an_object("no JSON") from None
        if not isinstance(raw, dict):
            raise _not_an_object(shown(raw))
        return raw

    def _kind(self, fields: Fields) -> str:
        kind = fields.get("type")
        if kind is None:
            if fields.get("cancel") is True:
                return "cancel"
            if fields.get("end") is True:
                return "end"
            raise fields.missing("type", "the message's type")
        if not isinstance(kind, str):
            raise fields.invalid("type", "a string")
        return kind.strip().lower()

    def _start(self, fields: Fields) -> Start:
        session = fields.session()
        if not session:
            raise fields.missing("session_id", "a string that is not empty")
        fields.synonyms("personalities")
        return Start(
            request_id=fields.request_id,
            session_id=session,
            gender=fields.choice("gender", GENDERS),
            personality=fields.style(),
            persona=fields.text("persona_text", "chat_prompt"),
            user_identity=fields.choice("user_identity", IDENTITIES),
            history=fields.history(),
            utterance=fields.text("user_utterance") or "",
            runtime_text=fields.text("runtime_text") or "",
            sampling=fields.sampling(self._grammar.bounds, flat=True),
            check_screen_prefix=fields.text("check_screen_prefix", limit=MAX_PREFIX_CHARS),
            screen_checked_prefix=fields.text("screen_checked_prefix", limit=MAX_PREFIX_CHARS),
        )

    def _followup(self, fields: Fields) -> Followup:
        analysis = fields.text("analysis_text")
        if not analysis or analysis.isspace():
            raise fields.missing("analysis_text", "a string that is not empty")
        return Followup(fields.request_id, fields.session(), analysis, fields.sampling(self._grammar.bounds, flat=True))

    def _chat_prompt(self, fields: Fields) -> ChatPrompt:
        persona = fields.required_text("persona_text", "chat_prompt")
        return ChatPrompt(
            fields.request_id, fields.session(), persona, fields.choice("gender", GENDERS), fields.style()
        )

    def _warm_persona(self, fields: Fields) -> WarmPersona:
        return WarmPersona(fields.request_id, fields.required_text("chat_prompt", "persona_text"))

    def _warm_history(self, fields: Fields) -> WarmHistory:
        history = fields.history()
        if history is None:
            raise fields.missing("history", "a list of {role, content}, or a transcript in history_text")
        persona = fields.text("persona_text", "chat_prompt")
        return WarmHistory(fields.request_id, fields.session(), history, persona, fields.text("runtime_text") or "")


class Fields:
    """One message's fields, read with the contract's checks. A field that is null counts as absent."""

    def __init__(self, raw: dict[str, object]) -> None:
        self._raw = raw
        self.request_id: RequestId | None = None
        self.kind: str | None = None

    def get(self, name: str) -> object:
        """The raw value, or None."""
        return self._raw.get(name)

    def missing(self, name: str, expected: str) -> Rejected:
        """The rejection of a message without a required field."""
        found = "nothing" if self._raw.get(name) is None else shown(self._raw[name])
        message = f"{name}: expected {expected}, found {found}"
        return Rejected(f"missing_{name}", message, field=name, expected=expected, found=found)

    def invalid(self, name: str, expected: str, value: object = None) -> Rejected:
        """The rejection of a value of the wrong kind."""
        found = shown(self._raw.get(name) if value is None else value)
        message = f"{name}: expected {expected}, found {found}"
        return Rejected(f"invalid_{name}", message, field=name, expected=expected, found=found)

    def identifier(self) -> RequestId | None:
        """The `request_id`."""
        value = self._raw.get("request_id")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self.invalid("request_id", "a string or a number")
        if isinstance(value, str) and len(value) > MAX_IDENTIFIER_CHARS:
            raise self.invalid("request_id", f"at most {MAX_IDENTIFIER_CHARS} characters")
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise self.invalid("request_id", "a number of at most 64 bits")
        return value

    def session(self) -> str | None:
        """The `session_id`; None where it is absent or empty."""
        return self.text("session_id", limit=MAX_IDENTIFIER_CHARS) or None

    def text(self, *names: str, limit: int | None = None) -> str | None:
        """A string under the first of the names that is present."""
        for name in names:
            value = self._raw.get(name)
            if value is None:
                continue
            if not isinstance(value, str):
                raise self.invalid(name, "a string")
            if limit is not None and len(value) > limit:
                raise self.invalid(name, f"at most {limit} characters", f"{len(value)} characters")
            return value
        return None

    def required_text(self, *names: str) -> str:
        """A string that says something."""
        value = self.text(*names)
        if value is None or not value.strip():
            raise self.missing(names[0], "a string that is not empty")
        return value

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """One of a few words, in any case."""
        value = self.text(name)
        if value is None:
            return None
        word = value.strip().lower()
        if word not in allowed:
            raise self.invalid(name, f"one of {', '.join(allowed)}")
        return word

    def style(self) -> str | None:
        """`persona_style`, or its alias `personality`."""
        for name in ("persona_style", "personality"):
            value = self.text(name)
            if value is None:
                continue
            word = value.strip()
            if not word.isalpha() or len(word) > MAX_STYLE_CHARS:
                raise self.invalid(name, f"letters, at most {MAX_STYLE_CHARS}")
            return word
        return None

    def synonyms(self, name: str) -> None:
        """Check an object of name to list of strings."""
        value = self._raw.get(name)
        if value is None:
            return
        fits = isinstance(value, dict) and all(
            isinstance(words, list) and all(isinstance(word, str) for word in words) for words in value.values()
        )
        if not fits:
            raise self.invalid(name, "an object of name to list of strings")

    def history(self) -> tuple[Message, ...] | None:
        """`history` as a list, or `history_text` as a transcript; the list wins. None where neither is present."""
        value = self._raw.get("history")
        if value is None:
            transcript = self.text("history_text")
            return None if transcript is None else self._transcript(transcript)
        if not isinstance(value, list):
            raise self.invalid("history", "a list of {role, content}")
        return tuple(self._entry(index, entry) for index, entry in enumerate(value))

    def _entry(self, index: int, entry: object) -> Message:
        if isinstance(entry, dict):
            role, content = entry.get("role"), entry.get("content")
            if isinstance(role, str) and isinstance(content, str) and role.strip().lower() in ("user", "assistant"):
                return Message(role.strip().lower(), content)
        raise self.invalid("history", 'entries {"role": "user" or "assistant", "content": string}', {index: entry})

    def _transcript(self, text: str) -> tuple[Message, ...]:
        try:
            return parse_transcript(text)
        except ValueError:
            raise self.invalid("history_text", "lines that start with 'User:' or 'Assistant:'") from None

    def sampling(self, bounds: Mapping[str, Bound], *, flat: bool) -> SamplingChange:
        """The parameters in `sampling`, and those that lie flat in the message; the nested ones win."""
        nested = self._raw.get("sampling")
        if nested is not None and not isinstance(nested, dict):
            raise self.invalid("sampling", "an object")
        given = {**(self._raw if flat else {}), **{k: v for k, v in (nested or {}).items() if v is not None}}
        values = {}
        for name, bound in bounds.items():
            value = given.get(name)
            if value is not None:
                values[name] = self._number(name, value, bound)
        sanitize = given.get("sanitize_output")
        if sanitize is not None and not isinstance(sanitize, bool):
            raise self.invalid("sanitize_output", "true or false", sanitize)
        return SamplingChange(values, sanitize)

    def _number(self, name: str, value: object, bound: Bound) -> float:
        number = _as_number(value)
        if number is None or (bound.whole and not number.is_integer()):
            raise self.invalid(name, str(bound), value)
        if not bound.low <= number <= bound.high:
            found = shown(value)
            message = f"{name}: expected {bound}, found {found}"
            raise Rejected(f"{name}_out_of_range", message, field=name, expected=str(bound), found=found)
        return number


def parse_transcript(text: str) -> tuple[Message, ...]:
    """Messages of a `User: … / Assistant: …` transcript. A message goes on until the next label at a line's start.

    >>> [m.role for m in parse_transcript("User: hi\\n\\nAssistant: hello\\nthere")]
    ['user', 'assistant']

    Raises:
        ValueError: the text does not start with a label.
    """
    parts = _LABEL.split(text)
    if parts[0].strip():
        raise ValueError("text before the first label")
    return tuple(Message(role.lower(), content.strip()) for role, content in zip(parts[1::2], parts[2::2], strict=True))


def shown(value: object) -> str:
    """What came, in a few words: short values as JSON, long ones cut."""
    if isinstance(value, str) and len(value) > 60:
        value = value[:60] + "…"
    elif isinstance(value, (dict, list)) and len(value) > 8:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        text = msgspec.json.encode(value).decode()
    except (RecursionError, OverflowError):
        return f"{type(value).__name__} too large to show"
    return text if len(text) <= 80 else text[:80] + "…"


# Spaces and tabs only: `\s` would also run over the blank lines before a label, and cost quadratic time there.
_LABEL = re.compile(r"^[ \t]*(user|assistant)[ \t]*:", re.IGNORECASE | re.MULTILINE)
# As JSON writes numbers, which is less than Python's `float` takes: no `1_0`, no `٣`.
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")


def _not_an_object(found: str) -> Rejected:
    expected = "one JSON object in a text frame"
    return Rejected("invalid_message", f"expected {expected}, found {found}", expected=expected, found=found)


def _as_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
