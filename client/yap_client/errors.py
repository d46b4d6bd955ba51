"""Errors: what a client cannot go on from, and what the server did not do.

YapError
├── ClosedError             the client itself was closed
├── AuthenticationError     no key, a wrong one, or one that was taken away
├── ServerGoneError         no server could be reached, or it said nothing for too long
│   └── CapacityError       it has no place for this client
├── ProtocolError           what answers is no such server
└── RefusedError            the server did not do what one message asked
    └── RateLimitError      it came too early
"""

from __future__ import annotations


class YapError(Exception):
    """Base of every error that this package raises."""


class ClosedError(YapError):
    """The client was closed; nothing can be said any more."""


class AuthenticationError(YapError):
    """The server does not know the key. Trying again does not help."""


class ServerGoneError(YapError):
    """The server cannot be reached, went away and did not come back, or said nothing for too long."""


class CapacityError(ServerGoneError):
    """The server has no place for this client, and had none for as long as the client tried."""


class ProtocolError(YapError):
    """What answers at the address is no server of this protocol."""


class RefusedError(YapError):
    """The server did not do what a message asked.

    Attributes:
        code: the error code of the protocol.
        message: the server's sentence for people.
        field, expected, found: what is wrong with the message, where one field is to blame.
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
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.field = field
        self.expected = expected
        self.found = found


class RateLimitError(RefusedError):
    """A message came too early.

    Attributes:
        retry_in: seconds after which it may come again.
    """

    def __init__(self, code: str, message: str, *, retry_in: float) -> None:
        super().__init__(code, message)
        self.retry_in = retry_in
