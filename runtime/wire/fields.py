"""The fields of one message, each read with the contract's checks and refused by its name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import msgspec

from runtime.text.prompt import Message
from runtime.wire import unknown_fields
from runtime.wire.frames import RequestId
from runtime.wire.messages import (
    MAX_HISTORY_MESSAGES,
    MAX_IDENTIFIER_CHARS,
    MAX_NUMBER_CHARS,
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOPS,
    MAX_STYLE_CHARS,
    Bound,
    Grammar,
    Rejected,
    SamplingChange,
)

ROLES = ("user", "assistant")
# Characters of a transcript that are searched for labels at a time.
TRANSCRIPT_STEP = 65_536


class Fields:
    """The fields of one message. A field that is null counts as absent."""

    def __init__(self, raw: dict[str, object]) -> None:
        self._raw = raw
        self.request_id: RequestId | None = None
        self.kind: str | None = None

    def unknown(self, kind: str) -> tuple[str, ...]:
        """Warnings of the fields that a message of this kind should not have."""
        return unknown_fields.warnings(kind, self._raw)

    def get(self, name: str) -> object:
        """The raw value, or None."""
        return self._raw.get(name)

    def missing(self, name: str, expected: str) -> Rejected:
        """The rejection of a message without a required field."""
        if self._raw.get(name) is not None:
            found = shown(self._raw[name])
        else:
            other = unknown_fields.misspelt(name, self._raw)
            found = f"nothing but {other}" if other else "nothing"
        message = f"{name}: expected {expected}, found {found}"
        return Rejected(f"missing_{name}", message, field=name, expected=expected, found=found)

    def invalid(self, name: str, expected: str, value: object = None) -> Rejected:
        """The rejection of a value of the wrong kind."""
        found = shown(self._raw.get(name) if value is None else value)
        message = f"{name}: expected {expected}, found {found}"
        return Rejected(f"invalid_{name}", message, field=name, expected=expected, found=found)

    def identifier(self) -> RequestId | None:
        """The `request_id`; None where it is absent."""
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
        """`history` as a list, or `history_text` as a transcript; the list wins. None where neither is present.

        Of more messages than a session keeps, the newest.
        """
        value = self._raw.get("history")
        if value is None:
            transcript = self.text("history_text")
            return None if transcript is None else self._transcript(transcript)
        if not isinstance(value, list):
            raise self.invalid("history", "a list of {role, content}")
        return tuple([self._entry(index, entry) for index, entry in enumerate(value)][-MAX_HISTORY_MESSAGES:])

    def _entry(self, index: int, entry: object) -> Message:
        if isinstance(entry, dict):
            role, content = entry.get("role"), entry.get("content")
            if isinstance(role, str) and isinstance(content, str):
                speaker = role if role in ROLES else role.strip().lower()
                if speaker in ROLES:
                    return Message(speaker, content)
        raise self.invalid("history", 'entries {"role": "user" or "assistant", "content": string}', {index: entry})

    def _transcript(self, text: str) -> tuple[Message, ...]:
        try:
            return parse_transcript(text)
        except ValueError:
            raise self.invalid("history_text", "lines that start with 'User:' or 'Assistant:'") from None

    def sampling(self, grammar: Grammar, *, flat: bool) -> SamplingChange:
        """The parameters in `sampling`, and those that lie flat in the message; the nested ones win."""
        nested = self._raw.get("sampling")
        if nested is not None and not isinstance(nested, dict):
            raise self.invalid("sampling", "an object")
        given = {**(self._raw if flat else {}), **{k: v for k, v in (nested or {}).items() if v is not None}}
        values = {}
        for name, bound in grammar.bounds.items():
            value = given.get(name)
            if value is not None:
                values[name] = self._number(name, value, bound)
        sanitize = given.get("sanitize_output")
        if sanitize is not None and not isinstance(sanitize, bool):
            raise self.invalid("sanitize_output", "true or false", sanitize)
        return SamplingChange(
            values,
            sanitize,
            max_tokens=self._whole("max_tokens", given, 1, grammar.max_tokens),
            stop=self._stops(given.get("stop")),
            seed=self._whole("seed", given, 0, MAX_SEED),
        )

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`; None where it is absent."""
        return self._whole(name, self._raw, low, high)

    def _whole(self, name: str, given: Mapping[str, object], low: int, high: int) -> int | None:
        """A whole number, exact also where a float is not."""
        value = given.get(name)
        if value is None:
            return None
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value  # as a float it would be rounded
        return int(self._number(name, value, Bound(low, high, whole=True)))

    def _stops(self, value: object) -> tuple[str, ...] | None:
        if value is None:
            return None
        expected = f"a list of at most {MAX_STOPS} strings, each of 1 to {MAX_STOP_CHARS} characters"
        if not isinstance(value, list) or len(value) > MAX_STOPS:
            raise self.invalid("stop", expected, value)
        for text in value:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARS:
                raise self.invalid("stop", expected, value)
        return tuple(value)

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

    Of more messages than a session keeps, the newest.

    >>> [m.role for m in parse_transcript("User: hi\\n\\nAssistant: hello\\nthere")]
    ['user', 'assistant']

    Raises:
        ValueError: the text does not start with a label.
    """
    newest_first: list[Message] = []
    end = len(text)
    for label in _labels_from_the_end(text):
        newest_first.append(Message(label[1].lower(), text[label.end() : end].strip()))
        end = label.start()
        if len(newest_first) == MAX_HISTORY_MESSAGES:
            break
    if not _FIRST_LABEL.match(text) and text.strip():
        raise ValueError("text before the first label")
    return tuple(reversed(newest_first))


def _labels_from_the_end(text: str) -> Iterator[re.Match[str]]:
    """The labels, last one first. What lies before the last one asked for is not searched."""
    end = len(text)
    while end > 0:
        start = text.rfind("\n", 0, max(end - TRANSCRIPT_STEP, 0)) + 1
        yield from reversed(list(_LABEL.finditer(text, start, end)))
        end = start


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
# Letters of ASCII alone: where the case is ignored `ſ` is an `s` as well, and no such word is one of the roles.
_LABEL = re.compile(r"^[ \t]*((?ai:user|assistant))[ \t]*:", re.MULTILINE)
# A whole number of at most 64 bits.
_WHOLE = re.compile(r"[0-9]{1,19}")
# A text that begins with a label.
_FIRST_LABEL = re.compile(r"\s*(?:\n|\A)[ \t]*(?ai:user|assistant)[ \t]*:")
# As JSON writes numbers, which is less than Python's `float` takes: no `1_0`, no `٣`. One way to read each text.
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")


def _as_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    # The length comes first: it bounds what reading costs.
    if isinstance(value, str) and (len(value) > MAX_NUMBER_CHARS or not _NUMBER.fullmatch(value)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
