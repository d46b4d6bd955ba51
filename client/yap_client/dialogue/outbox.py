"""The outbox: what is to be sent, what was sent and is not over, and when the next one can go.

A message carries what the server has not been told. So one waits where it depends on an answer what it has to carry.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from itertools import count

import msgspec

from yap_client.dialogue.exchanges import Ask, Exchange, Request, TurnState, nothing
from yap_client.session import Session, Value, sendable, some

# What may be sent again so often, where one connection after the other is lost.
MOST_ATTEMPTS = 5


class Outbox:
    """What a dialogue has to send, in its order.

    Attributes:
        session: what is said, and what the server has been told.
        outgoing: texts that are to be sent.
        flush: called when there are any.
        greeted: whether the server has taken the client, on this connection.
        proven: whether it has done anything for the client, on this connection.
        draining: whether the server goes away.
        asking: whether the server knows the session: nothing else is said before that is answered.
        waiting: what was not sent yet.
        open: what was sent and is not over, by id.
        heards: likewise, by the turn that they are about.
        cancels: the turns that cancels were sent for, by the cancels' own ids.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.outgoing: deque[str] = deque()
        self.flush: Callable[[], None] = nothing
        self.greeted = False
        self.proven = False
        self.draining = False
        self.asking: Request | None = None
        self.waiting: list[Exchange] = []
        self.open: dict[str, Exchange] = {}
        self.heards: dict[str, deque[Request]] = {}
        self.cancels: dict[str, TurnState] = {}
        self._nonce = uuid.uuid4().hex[:6]  # another client of the same session has other ids
        self._numbers = count(1)  # of everything that is said

    def number(self) -> int:
        """The number of the next thing that is said."""
        return next(self._numbers)

    def name(self, what: int | str) -> str:
        """An id that no other client gives."""
        return f"{self._nonce}-{what}"

    def add(self, exchange: Exchange) -> None:
        """Take a message, and send it when its time has come."""
        self.waiting.append(exchange)
        self.pump()

    def add_again(self, exchange: Exchange) -> None:
        """Take a message that was sent in vain, at its old place."""
        self.waiting.append(exchange)
        self.waiting.sort(key=lambda each: each.number)

    def empty(self) -> list[Exchange]:
        """Take back everything that waits."""
        waiting = list(self.waiting)
        self.waiting.clear()
        return waiting

    def lost(self) -> tuple[list[Exchange], list[Request]]:
        """Forget what was sent, for its connection is gone. Returns what was open, and each `heard`."""
        opened = [each for each in self.open.values() if each is not self.asking]
        heards = [each for group in self.heards.values() for each in group if each is not self.asking]
        self.greeted = self.draining = False
        self.open.clear()
        self.heards.clear()
        self.cancels.clear()
        self.outgoing.clear()
        self.asking = None
        return opened, heards

    def turns(self) -> list[TurnState]:
        """The turns that were sent and are not over."""
        return [each for each in self.open.values() if isinstance(each, TurnState)]

    def ready(self) -> bool:
        """Whether the server can take a message now."""
        return self.greeted and self.asking is None and not (self.draining or self._blocked())

    def pump(self) -> None:
        """Send what waits, in its order, as far as the server can take it."""
        while self.waiting and self.ready():
            exchange = self.waiting.pop(0)
            exchange.sent = True
            exchange.attempts += 1
            if isinstance(exchange, TurnState):
                self._send_turn(exchange)
            elif exchange.type == "heard" and isinstance(exchange, Request):
                self.send_heard(exchange)
            elif isinstance(exchange, Request) and exchange.type == "chat_prompt" and self._outdated(exchange):
                exchange.complete(None)  # the next turn carries what is wanted
            else:
                self.send_open(exchange)
        if any(isinstance(each, TurnState) for each in self.waiting) and not self.draining:
            for turn in self._unwritten():
                if turn.asked is Ask.BARGE_IN and not turn.doubtful:
                    self.send_cancel(turn)  # what waits for its end would have ended it

    def send(self, type_: str, id_: str, fields: dict[str, Value]) -> None:
        """Send a message now, whatever waits."""
        named: dict[str, Value] = {"request_id": id_} if id_ else {}
        message: dict[str, Value] = {"type": type_, **named, **fields}
        try:
            encoded = msgspec.json.encode(message)
        except UnicodeEncodeError:
            encoded = msgspec.json.encode(sendable(message))
        self.outgoing.append(encoded.decode())
        self.flush()

    def send_open(self, exchange: Exchange) -> None:
        """Send a message now that an answer of its own id ends."""
        self.open[exchange.id] = exchange
        self.send(exchange.type, exchange.id, exchange.fields)

    def send_heard(self, request: Request) -> None:
        """Send a `heard` now; its answer has the id of the turn that it is about."""
        self.heards.setdefault(request.id, deque()).append(request)
        self.send(request.type, request.id, request.fields)

    def send_cancel(self, turn: TurnState) -> None:
        """Send a cancel now; it may end every turn that was sent."""
        id_ = self.name(self.number())
        self.cancels[id_] = turn
        for each in self.turns():
            each.doubtful = True
        self.send("cancel", id_, {})

    def cancel_open(self) -> None:
        """End on the server what is over for the listener, where no new turn does that."""
        for turn in self.turns():
            if turn.asked is Ask.BARGE_IN and turn not in self.cancels.values():
                self.send_cancel(turn)

    def _send_turn(self, turn: TurnState) -> None:
        session = self.session
        turn.version = session.version
        self.open[turn.id] = turn
        if turn.type == "followup" and session.begun and not session.history_due and not turn.as_start:
            turn.carried = {}
            self.send("followup", turn.id, {"session_id": session.key, **turn.fields})
            return
        turn.carried = session.due()
        fields = dict(turn.fields)
        if turn.type == "followup":
            # Only a start can bring a server to know the session.
            turn.as_start = True
            fields["user_utterance"] = turn.utterance
            fields.pop("analysis_text", None)
        sampling = {**_object(turn.carried.get("sampling")), **_object(fields.pop("sampling", None))}
        self.send("start", turn.id, {"session_id": session.key, **turn.carried, **fields, **some(sampling=sampling)})

    def _blocked(self) -> bool:
        """Whether it depends on an answer what the next message has to carry."""
        if self.heards and self.session.history_due:
            return True  # how much of the last reply the history has is about to be told
        return any(_carries(each) or in_doubt(each) for each in self.turns()) or bool(self._unwritten())

    def _unwritten(self) -> list[TurnState]:
        """Turns whose end has to be known before the history can be sent: what is left of them belongs to it."""
        if not self.session.history_due:
            return []
        return [each for each in self.turns() if each.version == self.session.version and not _carries(each)]

    def _outdated(self, request: Request) -> bool:
        """Whether there is no session whose persona could be set, or another one is wanted by now."""
        session = self.session
        return not session.begun or session.wanted("persona_text") != request.fields["persona_text"]


def _carries(turn: TurnState) -> bool:
    """Whether a turn carries a history that the server may not have yet."""
    return "history" in turn.carried and not turn.acknowledged


def in_doubt(turn: TurnState) -> bool:
    """Whether the history keeps a turn's utterance: a cancel before the first word forgets it, a barge-in does not."""
    return turn.doubtful and turn.asked is Ask.BARGE_IN and not turn.said


def _object(value: Value) -> dict[str, Value]:
    return value if isinstance(value, dict) else {}
