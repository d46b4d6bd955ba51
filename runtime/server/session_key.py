"""The session key of a handshake: by it a router sends a client that comes back to the server that it had.

It is for routers alone: what a client says in its messages is served whatever it is. So it is neither kept nor logged,
only checked, since a router hashes it: a key that cannot be one is told, and not routed anywhere at random.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from runtime.wire.messages import MAX_IDENTIFIER_CHARS

# Not what else cannot be printed: joined emoji, spaces that do not break, and letters newer than this Python are names.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
HEADER, QUERY, COOKIE = "X-Session-Id", "session", "yap_session"


class SessionKeyError(ValueError):
    """A session key that is none.

    Attributes:
        field: where it stands.
        expected, found: what was to be there, and what was, without the key itself.
    """

    def __init__(self, field: str, found: str) -> None:
        self.field = field
        self.expected = f"at most {MAX_IDENTIFIER_CHARS} characters, none of them a control character"
        self.found = found
        super().__init__(f"{field}: expected {self.expected}, found {found}")


def session_key(headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
    """The key of a handshake, or None: the header's before the query's before the cookie's. An empty one is none.

    Raises:
        SessionKeyError: it is too long, or holds what nothing is named by.
    """
    places = ((HEADER, headers.get(HEADER.lower())), (QUERY, query.get(QUERY)), (COOKIE, _cookie(headers)))
    field, key = next(((field, key) for field, key in places if key), (HEADER, None))
    if key is None:
        return None
    if len(key) > MAX_IDENTIFIER_CHARS:
        raise SessionKeyError(field, f"{len(key)} characters")
    if _CONTROL.search(key):
        raise SessionKeyError(field, "a control character")
    return key


def _cookie(headers: Mapping[str, str]) -> str | None:
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value.strip('"')
    return None
