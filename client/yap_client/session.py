"""A session as its client sees it: what the server shall know, and what it has been told.

A message carries what differs, and nothing else: persona and history go once, and again when the server has forgotten.
"""

from __future__ import annotations

import reprlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from itertools import count

import msgspec

from yap_client.arguments import WIRE, Facts, HistoryItem, Sampling, check_facts
from yap_client.transcript import Message, Transcript

# What a message holds: texts, numbers, and lists and objects of them.
Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]

# What a server puts before the analysis of a followup where neither its operator (`SCREEN_CHECKED_PREFIX`) nor a client
# has said otherwise. No message tells it; a history that is sent again has to have it all the same.
SCREEN_CHECKED_PREFIX = "ON THE SCREEN NOW:"


def behind(prefix: str, text: str) -> str:
    """Return a text behind a prefix, as a server joins them.

    >>> behind("ON THE SCREEN NOW:", "a cat")
    'ON THE SCREEN NOW: a cat'
    """
    gap = "" if not prefix or prefix[-1].isspace() else " "
    return f"{prefix}{gap}{text}"


def sendable(value: Value) -> Value:
    """Return a value as it can be sent: what is half an emoji, where a text was cut, is U+FFFD, as the server reads it.

    >>> sendable({"text": ["Hi \\ud83d", "\\ud83d\\ude00"]}) == {"text": ["Hi \\ufffd", "\\U0001f600"]}
    True
    """
    if isinstance(value, str):
        return sendable_text(value)
    if isinstance(value, list):
        return [sendable(each) for each in value]
    if isinstance(value, dict):
        return {sendable_text(name): sendable(each) for name, each in value.items()}
    return value


def sendable_text(text: str) -> str:
    """Return a text as `sendable` does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def some(**fields: Value) -> dict[str, Value]:
    """Those of the fields that hold anything.

    >>> some(gender=None, persona_style="", runtime_text="It is late.")
    {'runtime_text': 'It is late.'}
    """
    return {name: value for name, value in fields.items() if value}


def read_messages(history: Iterable[HistoryItem]) -> list[Message]:
    """Read a history of messages or of mappings with `role` and `content`.

    >>> read_messages([{"role": "user", "content": "Hello."}])
    [Message(role='user', content='Hello.')]

    Raises:
        TypeError: it is none.
    """
    if isinstance(history, (str, bytes, Mapping)) or not isinstance(history, Iterable):
        raise TypeError(f"history: expected messages, one after the other, found {type(history).__name__}")
    return [_read_message(place, item) for place, item in enumerate(history)]


def _read_message(place: int, item: HistoryItem) -> Message:
    found = {"role": item.role, "content": item.content} if isinstance(item, Message) else item
    try:
        message = msgspec.convert(found, Message)
    except msgspec.ValidationError as wrong:
        raise TypeError(
            f"history[{place}]: expected a Message, or a mapping whose role is user or assistant and whose content is "
            f"a text, found {reprlib.repr(item)}: {wrong}"
        ) from None
    return Message(message.role, sendable_text(message.content))


class Session:
    """What a conversation's messages are made of.

    Attributes:
        key: its name; at the handshake too, where routers see it.
        transcript: what was said.
        own: whether nobody else is meant to talk in it: its name is new, or its history was given.
        history_due: whether the next turn has to carry the history.
        version: how often the history was replaced; what belongs to an older one is not added.
        begun: whether any turn was acknowledged, so that a server may know the session.
    """

    def __init__(
        self, key: str | None, facts: Facts, sampling: Sampling | None, history: Iterable[HistoryItem] | None
    ) -> None:
        self.key = sendable_text(key) if key else f"yap-{uuid.uuid4().hex}"
        # A session of a name that nobody else has is empty; one that was named may have been talked in before.
        self.transcript = Transcript(read_messages(history or ()), complete=key is None or history is not None)
        self.own = self.transcript.complete
        self.history_due = history is not None
        self.version = 0
        self.begun = False
        self._wanted: dict[str, Value] = {}  # what the server shall know
        self._told: dict[str, tuple[Value, int]] = {}  # what it has been told, and the number of what said so
        self._changes = count(1)  # of what is wanted
        self._change = 0  # the last one
        self.want(facts, sampling)

    def want(self, facts: Facts, sampling: Sampling | None = None) -> Callable[[], None]:
        """Change what the server shall know; it is told with the next turn. Returns what takes it back."""
        check_facts("want", facts)
        before, version = dict(self._wanted), next(self._changes)
        self._change = version
        for name, value in facts.items():
            if value is not None:
                self._wanted[WIRE.get(name, name)] = sendable_text(str(value))
        if sampling:
            known = self._wanted.get("sampling")
            changed: dict[str, Value] = {**known} if isinstance(known, dict) else {}
            changed.update(msgspec.to_builtins(sampling))
            self._wanted["sampling"] = changed

        def undo() -> None:
            if self._change == version:
                self._wanted = before

        return undo

    def wanted(self, name: str) -> str:
        """A text that the server shall know, by its name on the wire; empty where there is none."""
        value = self._wanted.get(name)
        return value if isinstance(value, str) else ""

    def followed_up(self, analysis: str) -> str:
        """What the history gets of a followup."""
        prefix = self._wanted.get("screen_checked_prefix", SCREEN_CHECKED_PREFIX)
        return behind(str(prefix), analysis)

    def replace_history(self, history: Iterable[HistoryItem]) -> None:
        """Begin anew with another history, from the next turn on."""
        self.transcript.replace(read_messages(history))
        self.own = True
        self.history_due = True
        self.version += 1

    def due(self) -> dict[str, Value]:
        """The fields that the server has not been told, as the next turn carries them."""
        fields = {name: value for name, value in self._wanted.items() if self._told.get(name, (None, 0))[0] != value}
        if self.history_due:
            fields["history"] = msgspec.to_builtins(list(self.transcript.newest()))
        return fields

    def due_with(
        self, facts: Facts, sampling: Sampling | None, history: Iterable[HistoryItem] | None
    ) -> dict[str, Value]:
        """The fields as the next turn would carry them, were it said with these. Nothing is changed by that."""
        wanted, change = dict(self._wanted), self._change
        try:
            self.want(facts, sampling)
            fields = self.due()
        finally:
            self._wanted, self._change = wanted, change
        if history is not None:
            fields["history"] = msgspec.to_builtins(list(Transcript(read_messages(history)).newest()))
        return fields

    def told(self, fields: Mapping[str, Value], version: int, number: int) -> None:
        """Take note of what a message carried that the server has acted upon."""
        self._told.update((name, (value, number)) for name, value in fields.items() if name in self._wanted)
        if "history" in fields and version == self.version:
            self.history_due = False

    def confirmed(self, number: int) -> None:
        """Take note that the server has a turn: it knows what it was told by then, and perhaps nothing later."""
        self._told = {name: told for name, told in self._told.items() if told[1] <= number}

    def doubted(self) -> None:
        """Take note that the server may have less of the session than was said: it is told everything again."""
        self._told.clear()
        self.history_due = self.history_due or self.transcript.complete

    def forgotten(self) -> None:
        """Take note that the server does not know the session: it is told everything again."""
        self.doubted()
        self.begun = False
        # Also when nothing was said: it may be a server where a connection that was lost still has the session.
        self.history_due = self.history_due or bool(self.transcript.messages)
