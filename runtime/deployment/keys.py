"""API keys as an operator writes them: in a variable, or in a file, where a key can have its holder's name.

A file's entries are separated by lines or commas:

    # who                     a comment: a line that begins with #, or what follows a # behind a space
    acme: 5Xb1…               `name: key`, or `name=key`
    acme: 9Qe0…               another key of the same holder, so that keys can be changed without an interruption
    kT7w…                     a key without a name

Keys without a name are holders of their own. In the variable no key has a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import SecretStr

# Called for short, so that it fits into a label of a metric.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
# What the server calls holders that have no name; names that begin so are not taken.
UNNAMED = "unnamed-"

_COMMENT = re.compile(r"(?:^|\s)#.*")
_SEPARATOR = re.compile(r"[:=]")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that a client may come with.

    Attributes:
        secret: the key.
        name: its holder's; none where the key alone says who it is.
    """

    secret: SecretStr
    name: str | None = None


class KeysError(ValueError):
    """Keys that cannot be told apart, or names that are none. One problem an entry, without the keys."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def from_variable(text: str) -> tuple[ApiKey, ...]:
    """The keys of a comma-separated list; each once."""
    parts = text.removeprefix("\ufeff").replace("\n", ",").split(",")
    return tuple(ApiKey(SecretStr(key)) for key in dict.fromkeys(part.strip() for part in parts) if key)


def from_file(data: bytes) -> tuple[ApiKey, ...]:
    """The keys of a file.

    Raises:
        KeysError: it is no UTF-8 text, a name is none, or a key has two holders.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise KeysError(["expected UTF-8 text, found other bytes"]) from None
    problems: list[str] = []
    holders: dict[str, str | None] = {}
    for line, entry in _entries(text):
        name, key = _split(entry)
        if name is not None and not NAME.fullmatch(name):
            problems.append(
                f"line {line}: expected a name of at most 64 letters, digits and _ . @ - before the key, found another"
            )
        elif name is not None and name.startswith(UNNAMED):
            problems.append(f"line {line}: expected a name that does not begin with {UNNAMED!r}, found {name!r}")
        elif holders.setdefault(key, name) != name:
            problems.append(f"line {line}: expected a key of one holder, found one that an earlier line gives another")
    if problems:
        raise KeysError(problems)
    return tuple(ApiKey(SecretStr(key), name) for key, name in holders.items())


def _entries(text: str) -> Iterator[tuple[int, str]]:
    """Entries with the number of their line."""
    # Only what a text editor calls a line: `splitlines` would also break at characters that a key may have.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        for part in _COMMENT.sub("", line).split(","):
            if entry := part.strip():
                yield number, entry


def _split(entry: str) -> tuple[str | None, str]:
    """Name and key. Signs of `=` at the end are a key's own, as base64 has them: what is before is no name."""
    found = _SEPARATOR.search(entry)
    if found is None or not (key := entry[found.end() :].strip()).strip("="):
        return None, entry
    return entry[: found.start()].strip(), key
