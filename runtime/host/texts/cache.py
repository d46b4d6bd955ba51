"""A cache of what was made of texts, bounded in bytes: what texts a client sends must not decide how much is kept."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

V = TypeVar("V")

_FOR: ContextVar[str | None] = ContextVar("cache_salt", default=None)


@contextmanager
def for_salt(cache_salt: str | None) -> Iterator[None]:
    """Work inside shares what is cached with work for the same salt alone.

    How long a text takes tells whether it was there: who may not know what others say must not find it.
    """
    token = _FOR.set(cache_salt)
    try:
        yield
    finally:
        _FOR.reset(token)


# What an entry costs besides its text and its value: the slot in the table, and the links of the order.
ENTRY_BYTES = 200


class TextCache(Generic[V]):
    """Values by their text, for each salt; the least recently used go first. Safe to use from several threads.

    Args:
        make: makes the value of a text that is not in the cache. Two threads may make the same one.
        limit: most bytes of all entries together, texts and values.
        entry_limit: most bytes of one entry; what is larger is made each time.

    Attributes:
        used: bytes of all entries now.
    """

    def __init__(self, make: Callable[[str], V], *, limit: int, entry_limit: int) -> None:
        self._make = make
        self._limit = limit
        self._entry_limit = min(entry_limit, limit)
        self._entries: OrderedDict[tuple[str | None, str], tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.used = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __call__(self, text: str) -> V:
        """The value of a text."""
        key = (_FOR.get(), text)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry[0]
        value = self._make(text)
        self.keep(text, value)
        return value

    def __contains__(self, text: str) -> bool:
        """Whether the value of a text is there; then it counts as used."""
        key = (_FOR.get(), text)
        with self._lock:
            if key not in self._entries:
                return False
            self._entries.move_to_end(key)
            return True

    def keep(self, text: str, value: V) -> None:
        """Put the value of a text in, unless it is too large."""
        size = ENTRY_BYTES + sys.getsizeof(text) + sys.getsizeof(value)
        if size <= self._entry_limit:
            with self._lock:
                self._keep((_FOR.get(), text), value, size)

    def _keep(self, key: tuple[str | None, str], value: V, size: int) -> None:
        known = self._entries.pop(key, None)
        self.used += size - (known[1] if known is not None else 0)
        self._entries[key] = (value, size)
        while self.used > self._limit:
            _, (_, freed) = self._entries.popitem(last=False)
            self.used -= freed
