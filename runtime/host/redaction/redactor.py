"""The redactor: events and values as a log may show them."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import re
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import PurePath
from urllib.parse import quote, quote_plus

from pydantic import SecretStr
from structlog.typing import EventDict, WrappedLogger

from runtime.host.redaction.errors import describe
from runtime.host.redaction.private_fields import HIDDEN, PRIVATE_FIELDS, hide_headers, hide_private_fields, is_private
from runtime.host.texts.words import any_of
from runtime.host.variables import SECRETS

# Keys that are shorter hide whole words only: `k` must not eat the k of every word.
SHORT_KEY = 6
LONGEST_TEXT = 8192
LONGEST_LIST = 100
DEEPEST = 8

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
_CREDENTIAL = re.compile(r"\b(bearer|basic)(\s{1,8})[\w.~+/=-]+", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_\w{8,}")


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
        self._texts = texts  # a new set: another thread may be looking through the old one
        long = [text for text in texts if len(text) >= SHORT_KEY]
        short = texts.difference(long)
        patterns = [any_of(long)] if long else []
        patterns += [rf"(?<![^\W_]){any_of(short)}(?![^\W_])"] if short else []
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
