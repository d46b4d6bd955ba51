"""Exchanges: a message of the client's, and what becomes of it."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable

from yap_client.errors import YapError
from yap_client.events import Done, Frame, Interrupted, ToolCall, TurnEvent
from yap_client.session import Value


class Ask(enum.Enum):
    """Why a turn is to end before its reply does, by the client's own wish."""

    CANCEL = "cancel"
    BARGE_IN = "barge_in"


class Exchange:
    """A message and what answers it.

    Attributes:
        number: its place among all that were said.
        id: its `request_id`.
        type: the message's.
        fields: its others.
        sent: whether a server may have it.
        attempts: how often it was sent.
        over: whether its last answer has come.
        error: why there is none; none where there is.
        wake: called when anything has come.
        undo: takes back what it changed of the session, for it was refused.
    """

    def __init__(self, number: int, id_: str, type_: str, fields: dict[str, Value]) -> None:
        self.number = number
        self.id = id_
        self.type = type_
        self.fields = fields
        self.sent = False
        self.attempts = 0
        self.over = False
        self.error: YapError | None = None
        self.wake: Callable[[], None] = nothing
        self.undo: Callable[[], None] = nothing

    def fail(self, error: YapError) -> None:
        """End without an answer."""
        if not self.over:
            self.error, self.over = error, True
            self.wake()


class Request(Exchange):
    """A message that has one answer.

    Attributes:
        answer: what came; none where the server is told with the next turn.
    """

    answer: Frame | None = None

    def complete(self, answer: Frame | None) -> None:
        """End with an answer."""
        if not self.over:
            self.answer, self.over = answer, True
            self.wake()


class TurnState(Exchange):
    """A turn: its message, its events that nobody has taken yet, and what becomes of it.

    Attributes:
        utterance: what the history gets of the user's words.
        events: what has come and was not taken.
        asked: how the client itself ended it; none while it may go on.
        acknowledged: whether the server has begun it.
        said: the reply's text so far, whether it was taken or not.
        heard: characters of the reply that the listener got; none where nobody has said.
        carried: fields of the session that its message carried.
        version: of the session's history when it was sent.
        as_start: whether it is a followup that is sent as a start, since the server does not know the session.
        doubtful: whether a cancel was sent that may have ended it.
        cut: whether its connection was lost before its end.
    """

    def __init__(self, number: int, id_: str, type_: str, fields: dict[str, Value], utterance: str) -> None:
        super().__init__(number, id_, type_, fields)
        self.utterance = utterance
        self.events: deque[TurnEvent] = deque()
        self.asked: Ask | None = None
        self.acknowledged = False
        self.said = ""
        self.heard: int | None = None
        self.carried: dict[str, Value] = {}
        self.version = 0
        self.as_start = False
        self.doubtful = False
        self.cut = False

    def silence(self, why: Ask) -> None:
        """Let nothing of it be heard any more but its end."""
        if self.asked is None and not self.over:
            self.asked = why
            self.events.clear()

    def put(self, event: TurnEvent) -> None:
        """Take an event, unless nobody is to hear it."""
        if self.asked is None and not (self.as_start and isinstance(event, ToolCall)):
            self.events.append(event)
            self.wake()

    def end(self, event: Done | Interrupted) -> None:
        """Take the last event."""
        if not self.over:
            self.events.append(event)
            self.over = True
            self.wake()


def nothing() -> None:
    """Do nothing: what is called where nobody wants to be told."""
