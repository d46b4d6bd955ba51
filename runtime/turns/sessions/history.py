"""The conversation so far: what was said, oldest first, and how much memory it takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from sys import getsizeof

from runtime import defaults
from runtime.text.prompt import Message
from runtime.wire.messages import MAX_HISTORY_MESSAGES

# Far above any prompt budget (the default history is some 12,000 characters): what lies beyond could never be seen by
# a model, so it need not be kept. Memory, because one emoji makes Python keep four bytes for each character of a text.
HISTORY_MAX_BYTES = defaults.MESSAGE_BYTES
HISTORY_MAX_MESSAGES = MAX_HISTORY_MESSAGES
# As measured, and a little more: a `Message` and its place in the history, without the text.
MESSAGE_OVERHEAD_BYTES = 56


class History:
    """The conversation so far, oldest first, bounded by dropping the oldest. Appending takes constant time."""

    __slots__ = ("_dropped", "_messages", "_size")

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self._messages: deque[Message] = deque()
        self._size = 0
        self._dropped = 0  # messages that went because they were oldest
        self.extend(messages)

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return self._size

    def extend(self, messages: Iterable[Message]) -> None:
        """Append messages; the oldest go where there are too many."""
        for message in messages:
            self._messages.append(message)
            self._size += message_size(message)
        self._trim()

    @property
    def end(self) -> int:
        """The place behind the last message: places count what was dropped too, so that they stay where they are."""
        return self._dropped + len(self._messages)

    def before(self, place: int) -> Message | None:
        """The message before a place; none where that has been dropped, or where there is none."""
        index = place - self._dropped - 1
        return self._messages[index] if 0 <= index < len(self._messages) else None

    def insert(self, place: int, messages: Iterable[Message]) -> None:
        """Put messages before the one at a place, or before the oldest where that one has been dropped."""
        index = max(0, min(place - self._dropped, len(self._messages)))
        for offset, message in enumerate(messages):
            self._messages.insert(index + offset, message)
            self._size += message_size(message)
        self._trim()

    def _trim(self) -> None:
        while self._size > HISTORY_MAX_BYTES or len(self._messages) > HISTORY_MAX_MESSAGES:
            self._size -= message_size(self._messages.popleft())
            self._dropped += 1

    def remove(self, message: Message) -> None:
        """Take back a message that was appended last, unless it has been dropped."""
        if self._messages and self._messages[-1] is message:
            self._size -= message_size(self._messages.pop())

    def messages(self) -> tuple[Message, ...]:
        """A snapshot that later turns do not change."""
        return tuple(self._messages)


def message_size(message: Message) -> int:
    """Bytes of memory that a message takes."""
    return getsizeof(message.content) + MESSAGE_OVERHEAD_BYTES
