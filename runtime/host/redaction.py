"""What a log may show: by structure, so that nothing depends on what a text happens to look like.

Numbers, and texts under names that say nothing of users, are shown, without keys and without what signs an address. An
object is shown field by field when it is plain data, and else by its type alone. An error is shown by its type and the
places that it came through; its text only where its class says that it quotes nobody.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import os
import re
import traceback
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import PurePath
from types import TracebackType
from urllib.parse import quote, quote_plus

from pydantic import SecretStr
from structlog.typing import EventDict, WrappedLogger

from runtime.host.variables import SECRETS

HIDDEN = "[hidden]"
# A name with one of these words in it carries a secret, unless its value is a number.
SECRET_WORDS = frozenset(
    {
        "authorization", "password", "passwords", "secret", "secrets", "credential", "credentials", "cookie", "cookies",
        "cookie2", "apikey", "apikeys", "token", "bearer", "passwd", "passphrase", "signature",
    }
)  # fmt: skip
# And with one of these what users said.
PRIVATE_WORDS = SECRET_WORDS | {
    "prompt", "prompts", "persona", "personas", "history", "histories", "utterance", "utterances", "transcript",
    "transcripts", "transcription", "text", "texts", "said", "heard", "spoken", "speech", "reply", "replies",
    "answer", "answers", "content", "contents", "messages", "conversation", "conversations", "dialog", "dialogue",
    "analysis", "analyses", "query", "queries", "question", "questions", "completion", "completions", "delta",
    "deltas",
}  # fmt: skip
# A key of these kinds is a secret, one of a dictionary is none.
KEY_KINDS = frozenset(
    {
        "api", "access", "secret", "private", "signing", "auth", "session", "encryption", "subscription", "functions",
        "account", "master",
    }
)  # fmt: skip
# These are private whatever their value.
PRIVATE_FIELDS = frozenset(
    {
        "api_key", "api_keys", "x-api-key", "authorization", "text_api_key", "text_api_keys", "persona", "persona_text",
        "chat_prompt", "prompt", "history", "history_text", "utterance", "user_utterance", "analysis_text",
        "runtime_text", "text", "said", "content", "messages", "query", "completion",
    }
)  # fmt: skip
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")

# A class whose errors quote nothing that a client sent sets this attribute to True; then their text is shown.
TELLABLE = "text_may_be_logged"
# These are about the machine, wherever they come from.
TELLABLE_NAMES = frozenset({"torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError", "torch.AcceleratorError"})

# Keys that are shorter hide whole words only: `k` must not eat the k of every word.
SHORT_KEY = 6
LONGEST_TEXT = 8192
LONGEST_LIST = 100
DEEPEST = 8
FRAMES = 40
CHAIN = 8

# An address says where; what follows its path may sign it. So may what stands before its host.
_USER = re.compile(r"(?<=://)[^\s/@\"'<>]{1,512}@")
_URL_QUERY = re.compile(r"(://[^\s\"'<>?#]{1,1024})[?#][^\s\"'<>]*")
# A query without its host: its short numbers are shown.
_PARAMETER = re.compile(r"([?&;][^\s=&;\"'<>?]{1,128}=)([^\s&;\"'<>]*)")
_SHOWN_PARAMETER = re.compile(r"\d{1,5}")
_KEY_PARAMETER = re.compile(
    r"(api_?keys?|token|signature|secret|passw(?:or)?d|authorization|credentials?|access_?key(?:_?id)?)"
    r"(=)[^&\s\"',;]*",
    re.IGNORECASE,
)
# What may be a header, as it stands on the wire, in JSON, in Python, in a pair or in a command.
_HEADER = re.compile(r"(?<![\w-])([\w-]{1,80})(?:(\\*[\"'])\s{0,8}[:=,]|\s{0,8}([:=]))\s{0,8}(?=[^\s])")
_HEADER_ENDS = ("authorization", "cookie", "cookie2", "api-key")
_SECRET_ENDS = (*_HEADER_ENDS, "api_key", "apikey", "password", "passphrase")
_QUOTED = re.compile(r"[\w.]{0,64}(?=\\*[\"']|[\[({])")
# A header goes on where the next line begins with a space.
_LINES_END = re.compile(r"[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*")
# Behind a quoted value: what shows that it was the first part of a header.
_GOES_ON = re.compile(r"\s{0,8};|[^\s,)\]}\"'\\]")
_CREDENTIAL = re.compile(r"\b(bearer|basic)(\s{1,8})[\w.~+/=-]+", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_\w{8,}")
# A name and the beginning of a value that is quoted or bracketed, as JSON, Python and calls write it.
_FIELD = re.compile(r"(?<![\w-])([\w-]+)\\*[\"']?\s{0,8}[:=]\s{0,8}[\w.]{0,64}(?=\\*[\"']|[\[({])")
_STRUCTURE = re.compile(r"(\\*)([\"'])|[\[({]|[\])}]")

_TRACEBACK = "Traceback (most recent call last):"
_PLACE = re.compile(r'\s*File "[^"\n]{1,512}", line \d+(, in \S+)?')
_ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(?=:|$)")


class Redactor:
    """Hides private fields, secrets by their type, what signs an address, and the server's own keys everywhere."""

    def __init__(self, secrets: Sequence[SecretStr] = ()) -> None:
        self._texts: set[str] = set()
        self._secrets: re.Pattern[str] | None = None
        self.hide(secrets)

    def hide(self, secrets: Iterable[SecretStr]) -> None:
        """Hide these too from now on."""
        plain = {secret.get_secret_value() for secret in secrets}
        texts = (self._texts | {form for text in plain for form in _forms(text)}) - {""}
        longest_first = sorted(texts, key=len, reverse=True)
        self._texts = texts  # a new set: another thread may be looking through the old one
        patterns = [
            re.escape(text) if len(text) >= SHORT_KEY else rf"(?<![^\W_]){re.escape(text)}(?![^\W_])"
            for text in longest_first
        ]
        self._secrets = re.compile("|".join(patterns)) if patterns else None

    def text(self, text: str) -> str:
        """A text without keys and signatures, of bounded length."""
        if self._secrets:
            text = self._secrets.sub(HIDDEN, text)
        text = text[: 2 * LONGEST_TEXT]  # what is hidden below makes it shorter, and takes time
        text = hide_headers(text)
        text = hide_private_fields(text)
        text = _CREDENTIAL.sub(rf"\1\2{HIDDEN}", text)
        text = _HUB_TOKEN.sub(HIDDEN, text)
        text = _USER.sub(f"{HIDDEN}@", text)
        text = _URL_QUERY.sub(rf"\1?{HIDDEN}", text)
        text = _PARAMETER.sub(_parameter, text)
        text = _KEY_PARAMETER.sub(rf"\1\2{HIDDEN}", text)
        return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Redact one event, as a structlog processor."""
        return {self.text(str(name)): self._field(str(name), value, 0) for name, value in event.items()}

    def value(self, value: object, depth: int = 0) -> object:
        """A value as plain data without keys; what is no plain data is shown by its type."""
        if isinstance(value, enum.Enum):
            return self.text(f"{type(value).__name__}.{value.name}")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, (int, float)):
            return HIDDEN if str(value) in self._texts else value
        if isinstance(value, SECRETS):
            return HIDDEN
        if isinstance(value, str):
            return self.text(str(value))
        if isinstance(value, (bytes, bytearray)):
            return self.text(value.decode("utf-8", "replace"))
        if isinstance(value, (PurePath, datetime.date, datetime.time, datetime.timedelta, uuid.UUID, Decimal)):
            return self.text(str(value))
        if isinstance(value, BaseException):
            return self.text(describe(value))
        if isinstance(value, type):
            return self.text(value.__qualname__)
        if depth < DEEPEST:
            if isinstance(value, Mapping):
                return self._mapping(list(value.items()), depth)
            if isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], (str, bytes)):
                # Headers come as pairs.
                name = value[0] if isinstance(value[0], str) else value[0].decode("latin-1")
                return [self.text(name), self._field(name, value[1], depth + 1)]
            if isinstance(value, (list, tuple, set, frozenset, deque)):
                return [self.value(inner, depth + 1) for inner in list(value)[:LONGEST_LIST]]
            if dataclasses.is_dataclass(value):
                pairs = [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
                return self._mapping(pairs, depth)
        return self.text(f"<{type(value).__qualname__}>")

    def _mapping(self, pairs: Sequence[tuple[object, object]], depth: int) -> dict[str, object]:
        shown: dict[str, object] = {}
        for name, value in pairs[:LONGEST_LIST]:
            name_shown = str(self.value(name, depth + 1))
            shown[name_shown] = self._field(name if isinstance(name, str) else name_shown, value, depth + 1)
        return shown

    def _field(self, name: str, value: object, depth: int) -> object:
        if name.lower() in PRIVATE_FIELDS or (not isinstance(value, (bool, int, float)) and is_private(name)):
            return HIDDEN
        return self.value(value, depth)


def is_private(name: str) -> bool:
    """Whether a field's name says that it carries what users said, or a secret.

    >>> [is_private(name) for name in ("userPrompt", "x-persona", "prompt_tokens", "monkey", "context")]
    [True, True, True, False, False]
    """
    return _has_word(name, PRIVATE_WORDS)


def _has_word(name: str, words: frozenset[str]) -> bool:
    found = [word.lower() for word in _WORD.findall(name)]
    keys = (kind in KEY_KINDS and word in ("key", "keys") for kind, word in pairwise(found))
    return not words.isdisjoint(found) or any(keys)


def hide_headers(text: str) -> str:
    """A text without the values of the headers in it that carry secrets, however many parts these have.

    >>> hide_headers('Cookie: "a=b"; c=d\\nHost: h')
    'Cookie: [hidden]\\nHost: h'
    """
    kept, at = [], 0
    while found := _HEADER.search(text, at):
        kept.append(text[at : found.end()])
        at = found.end()
        if end := _header_end(text, at, found[1], found[3] or ""):
            kept.append(HIDDEN)
            at = end
    return "".join(kept) + text[at:]


def _header_end(text: str, at: int, name: str, bare: str) -> int:
    """Where the value of a header ends that begins here; 0 when it is none that is hidden.

    Args:
        bare: what stands behind the name, where this is not quoted.
    """
    quoted = _QUOTED.match(text, at)
    parameter = bare == "=" and quoted is None
    ends = name.lower().endswith(_HEADER_ENDS if parameter else _SECRET_ENDS)
    # One word alone may be any text's: `unexpected token: <`.
    several = not parameter and ("-" in name or "_" in name)
    if not ends and not (several and _has_word(name, SECRET_WORDS)):
        return 0
    value_end = _value_end(text, quoted.end()) if quoted else at
    if quoted and bare != ":" and not _GOES_ON.match(text, value_end):
        return value_end
    found = _LINES_END.match(text, value_end)
    return found.end() if found else len(text)


def hide_private_fields(text: str) -> str:
    """A text without the values of private fields in it that are quoted or bracketed: JSON, Python's repr, calls.

    >>> hide_private_fields("refused: {'persona_text': 'You are Mia.', 'chars': 12}")
    "refused: {'persona_text': [hidden], 'chars': 12}"
    """
    kept, at = [], 0
    while found := _FIELD.search(text, at):
        kept.append(text[at : found.end()])
        at = found.end()
        if is_private(found[1]):
            kept.append(HIDDEN)
            at = _value_end(text, at)
    return "".join(kept) + text[at:]


def _value_end(text: str, at: int) -> int:
    """Where the quoted or bracketed value ends that begins here; at the text's end where nothing ends it."""
    depth = 0
    quoted: tuple[int, str] | None = None  # with so many backslashes before it
    for found in _STRUCTURE.finditer(text, at):
        backslashes, mark = len(found[1] or ""), found[2]
        if quoted is not None:
            # Quotes inside have more backslashes. One that may end a string with backslashes at its end, or be inside,
            # is taken as inside; among brackets nothing is certain after it. More is hidden then, never less.
            if mark == quoted[1] and backslashes == quoted[0]:
                quoted = None
            elif depth and mark == quoted[1] and (quoted[0], backslashes % 4) not in ((0, 1), (0, 3), (1, 3)):
                return len(text)
        elif mark:
            quoted = (backslashes, mark)
        else:
            depth += 1 if found[0] in "[({" else -1
        if quoted is None and depth <= 0:
            return found.end()
    return len(text)


def _forms(secret: str) -> Iterator[str]:
    """A secret as it may stand in a text: as it is, in an address, in JSON, in Python."""
    yield secret
    for safe in ("", "/"):
        yield quote(secret, safe=safe, errors="replace")
    yield quote_plus(secret, errors="replace")
    for ascii_only in (True, False):
        written = json.dumps(secret, ensure_ascii=ascii_only)[1:-1]
        yield written
        yield written.replace("/", r"\/")  # some libraries write it so
    yield repr(secret)[1:-1]


def _parameter(found: re.Match[str]) -> str:
    return found[0] if _SHOWN_PARAMETER.fullmatch(found[2]) else f"{found[1]}{HIDDEN}"


# Errors


def describe(error: BaseException) -> str:
    """An error in one line: its type, and its text where that quotes nobody."""
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    if getattr(kind, TELLABLE, False) or name in TELLABLE_NAMES:
        return f"{name}: {error}"
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return f"{name}: {os.strerror(error.errno)}"
    return name


def places(trace: TracebackType | None) -> Iterator[str]:
    """Where an error came through: files, lines and functions. No source, and no values."""
    frames = list(traceback.walk_tb(trace))
    for frame, line in frames[-FRAMES:]:
        yield f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}'


def explain(error: BaseException) -> str:
    """An error with what led to it, the innermost first, as Python tells it, without what it quotes."""
    parts: list[str] = []
    told: set[int] = set()
    waiting = [error]
    while waiting and len(told) < CHAIN:
        current = waiting.pop(0)
        if id(current) in told:
            continue
        told.add(id(current))
        parts.append("\n".join([_TRACEBACK, *places(current.__traceback__), describe(current)]))
        inner = getattr(current, "exceptions", ())  # of a group
        waiting += [one for one in inner if isinstance(one, BaseException)] if isinstance(inner, (tuple, list)) else []
        before = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
        if before is not None:
            waiting.append(before)
    return "\n\n".join(reversed(parts))


def without_quotes(text: str) -> str:
    """A message that holds a traceback as text, with places and types of errors alone."""
    before, found, after = text.partition(_TRACEBACK)
    if not found:
        return text
    lines = [found]
    for line in after.splitlines():
        if place := _PLACE.match(line):
            lines.append(place[0])
        elif not line.startswith((" ", "\t")) and (error := _ERROR_LINE.match(line)):
            lines.append(error[0])
    return before + "\n".join(lines)
