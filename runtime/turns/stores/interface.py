"""The store as the server sees it: a place for each session, which one server at a time may write.

Whoever **takes** a session gets a new **epoch**, higher than any before, and with it the right to write. A write under
an older epoch is refused: the session has been taken over. What was said on the server that lost it is not lost: it
**leaves** its turns beside the session, and the next write of the new owner is told of them.

Epochs are microseconds of the store's own clock, or one more than the last: they rise also where the store has
forgotten everything meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import msgspec

# Before every name that is ours in the store.
PREFIX = "yap:session:"
# Turns that lie beside one session at most; who leaves more is refused.
MOST_LEFT = 64


class StoreError(Exception):
    """The store does not answer, or does not do what it was asked. Its text is fit for the log."""


class Found(msgspec.Struct, frozen=True):
    """What lies at a place.

    Attributes:
        value: of the session, sealed; none where there is none.
        written: the epoch under which it was written.
        left: turns that servers left which had lost the session, by id.
        foreign: whether something lay there that no server of ours has written; it is gone now.
        taken: whether any server has taken the session.
    """

    value: bytes | None = None
    written: int = 0
    left: tuple[tuple[str, bytes], ...] = ()
    foreign: bool = False
    taken: bool = True


class Taken(msgspec.Struct, frozen=True):
    """A session that this server may write from now on, under this epoch."""

    epoch: int
    found: Found


class Write(msgspec.Struct, frozen=True):
    """Replace a session whole, where nobody has taken it over.

    Attributes:
        place: its name in the store.
        epoch: of the server that writes.
        value: the session, sealed; none removes it, and keeps the epoch.
        merged: ids of turns that lay beside it and that the value has.
    """

    place: str
    epoch: int
    value: bytes | None
    merged: tuple[str, ...] = ()


class Leave(msgspec.Struct, frozen=True):
    """Put a turn beside a session that another server has.

    Attributes:
        place: the session's name in the store.
        id: the turn's; what is left twice lies there once.
        value: the turn, sealed.
    """

    place: str
    id: str
    value: bytes


class Outcome(msgspec.Struct, frozen=True):
    """What became of a change.

    Attributes:
        accepted: false where another server has taken the session over, or too many turns lie beside it.
        left: turns that lie beside the session now.
        error: why the store could not do it, where it answered with an error; fit for the log.
    """

    accepted: bool
    left: tuple[tuple[str, bytes], ...] = ()
    error: str = ""


class Store(Protocol):
    """Keeps sessions. Every method raises `StoreError` where the store does not answer."""

    async def take(self, place: str) -> Taken:
        """Take a session: nobody else may write it from now on."""

    async def look(self, place: str) -> Found:
        """What lies at a place. Changes nothing."""

    async def apply(self, changes: Sequence[Write | Leave]) -> list[Outcome]:
        """Make changes, in their order, each whole or not at all."""

    async def remove_all(self, *prefixes: str) -> int:
        """Remove every session whose place begins with one of these; return how many there were."""

    async def ping(self) -> None:
        """Ask whether it does what it is for."""

    async def close(self) -> None:
        """Let go of all connections."""


@lru_cache(1024)
def shelf(identity: bytes) -> str:
    """What the places of all sessions of one principal begin with. Tells nothing of who that is."""
    return PREFIX + hashlib.sha256(b"yap principal\0" + identity).hexdigest()[:32] + ":"


def place(identity: bytes, session_id: str) -> str:
    """The name of a session in the store. Tells nothing of the session's id, nor of whose it is."""
    name = session_id.encode("utf-8", "surrogatepass")
    return shelf(identity) + hashlib.sha256(b"yap session\0" + identity + b"\0" + name).hexdigest()[:40]
