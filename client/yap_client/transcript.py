"""The transcript: what was said, kept by the rules by which the server keeps its history.

A server that does not know the session any more is sent it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

# As the server: what lies beyond could never be seen by a model.
MOST_MESSAGES = 2_048
# Beside it, a frame of 262,144 bytes has room for everything else.
MOST_BYTES = 160_000
# Around each message's text.
JSON_BYTES = 40


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: str


class Transcript:
    """The conversation so far, oldest first; its last reply can be cut to what was heard.

    Attributes:
        complete: whether it holds all that the session's history has; not where a session was begun by somebody else.
    """

    def __init__(self, messages: Iterable[Message] = (), *, complete: bool = True) -> None:
        self.complete = complete
        self._messages: deque[Message] = deque(messages, MOST_MESSAGES)
        self._said: str | None = None  # the last reply, whole; none where it left nothing
        self._held = False  # whether the last message is it

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages, oldest first."""
        return tuple(self._messages)

    @property
    def reply(self) -> str:
        """The last reply as far as it was heard, where it can still be cut; empty where it cannot."""
        return self._messages[-1].content if self._held else ""

    def replace(self, messages: Iterable[Message]) -> None:
        """Begin anew with other messages."""
        self._messages = deque(messages, MOST_MESSAGES)
        self.complete = True
        self._said, self._held = None, False

    def add(self, utterance: str, said: str, heard: int | None = None) -> None:
        """Take over a turn that the history keeps: the user's words and the reply, each where there is any."""
        if utterance.strip():
            self._messages.append(Message("user", utterance))
        self._said, self._held = said, False
        self.cut(len(said) if heard is None else heard)

    def skip(self) -> None:
        """Take note of a turn that left nothing: there is no reply to cut."""
        self._said, self._held = None, False

    def cut(self, chars: int) -> None:
        """Keep so many characters of the last reply."""
        if self._said is None:
            return
        if self._held:
            self._messages.pop()
        heard = self._said[:chars]
        self._held = bool(heard.strip())
        if self._held:
            self._messages.append(Message("assistant", heard))

    def newest(self, most_bytes: int = MOST_BYTES) -> Sequence[Message]:
        """The newest messages that fit into one frame."""
        kept: deque[Message] = deque()
        for message in reversed(self._messages):
            most_bytes -= len(msgspec.json.encode(message.content)) + JSON_BYTES
            if most_bytes < 0:
                break
            kept.appendleft(message)
        return kept
