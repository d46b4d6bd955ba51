"""A cache of what was made of texts, bounded in bytes: what texts a client sends must not decide how much is kept."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")

# What an entry costs besides its text and its value: the slot in the table, and the links of the order.
ENTRY_BYTES = 200


class TextCache(Generic[V]):
    """Values by their text; the least recently used go first. Safe to use from several threads.

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
        self._entries: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.used = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __call__(self, text: str) -> V:
        """The value of a text."""
        with self._lock:
            entry = self._entries.get(text)
            if entry is not None:
                self._entries.move_to_end(text)
                return entry[0]
        value = self._make(text)
        size = ENTRY_BYTES + sys.getsizeof(text) + sys.getsizeof(value)
        if size <= self._entry_limit:
            with self._lock:
                self._keep(text, value, size)
        return value

    def _keep(self, text: str, value: V, size: int) -> None:
        known = self._entries.pop(text, None)
        self.used += size - (known[1] if known is not None else 0)
        self._entries[text] = (value, size)
        while self.used > self._limit:
            _, (_, freed) = self._entries.popitem(last=False)
            self.used -= freed
