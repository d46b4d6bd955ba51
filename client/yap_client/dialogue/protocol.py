"""The dialogue: what is said over a client's socket, without a socket.

Texts that the server sent go in, texts for the server come out, and events come to the turns that they belong to. Who
reads and writes the socket tells of its beginning and its end.

    said ──► waits ──► sent ──► acknowledged ──► done
               ▲         │            │
               └─refused─┘            └── connection lost ──► interrupted
                (draining)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from yap_client import events
from yap_client.dialogue.answers import Answers
from yap_client.dialogue.exchanges import Ask, Exchange, Request, TurnState, nothing
from yap_client.dialogue.inquiry import Inquiry
from yap_client.dialogue.outbox import MOST_ATTEMPTS, Outbox
from yap_client.errors import (
    AuthenticationError,
    CapacityError,
    ClosedError,
    ProtocolError,
    RefusedError,
    ServerGoneError,
    YapError,
)
from yap_client.events import Ack, Done, Draining, Error, Pong
from yap_client.session import Session, Value, sendable_text

TOO_BIG = 1009
REFUSALS: Mapping[str, type[YapError]] = {
    "authentication_failed": AuthenticationError,
    "server_at_capacity": CapacityError,
    "connection_quota_exceeded": CapacityError,
    "invalid_session": ProtocolError,
}


class Dialogue:
    """One client's conversation with whatever server it is connected to.

    Attributes:
        session: what is said, and what the server has been told.
        outgoing: texts that are to be sent, in their order.
        welcomed: called when the server has taken the client.
        refusal: why the server will not have this connection; none where it will.
        closed: whether the client has ended it.
        dead: why nothing can be said any more; none while something can.
        current: the turn that was said last.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._outbox = Outbox(session)  # what is sent
        self._inquiry = Inquiry(self._outbox)  # what the server knows of the session
        self._answers = Answers(self._outbox, self._inquiry)  # what it answers
        self.outgoing = self._outbox.outgoing
        self._waiting = self._outbox.waiting  # what was not sent yet
        self._open = self._outbox.open  # what was sent and is not over
        self.welcomed: Callable[[], None] = nothing
        self.refusal: YapError | None = None
        self.closed = False
        self.dead: YapError | None = None
        self.current: TurnState | None = None
        self._connected = False  # whether there is a socket

    @property
    def flush(self) -> Callable[[], None]:
        """Called when there are texts to be sent."""
        return self._outbox.flush

    @flush.setter
    def flush(self, call: Callable[[], None]) -> None:
        """Set what is called then."""
        self._outbox.flush = call

    @property
    def greeted(self) -> bool:
        """Whether the server has taken the client, on this connection."""
        return self._outbox.greeted

    @property
    def draining(self) -> bool:
        """Whether the server goes away."""
        return self._outbox.draining

    @property
    def proven(self) -> bool:
        """Whether the server has done anything for the client on this connection."""
        return self._outbox.proven

    @proven.setter
    def proven(self, proven: bool) -> None:
        """Set it back: what a server did on an earlier connection says nothing of the next."""
        self._outbox.proven = proven

    # What the client wants

    def say(self, type_: str, fields: dict[str, Value], utterance: str) -> TurnState:
        """Begin a turn. The one that runs is over for the listener from now on.

        Raises:
            TypeError: a field is nothing that JSON has.
        """
        fields, number = msgspec.to_builtins(fields), self._outbox.number()
        state = TurnState(number, self._outbox.name(number), type_, fields, sendable_text(utterance))
        old, self.current = self.current, state
        if old is not None and not old.over:
            old.silence(Ask.BARGE_IN)
            if self.draining:
                self._outbox.cancel_open()  # the server would refuse the new turn, and go on with the old one
        self._submit(state)
        return state

    def prepare(self, fields: dict[str, Value]) -> bool:
        """Have the server begin with what the next turn will ask, where that can be said now; else it is left.

        Nothing answers it, and nothing waits for it: what comes late would be of no use.

        Returns:
            Whether it was sent.

        Raises:
            TypeError: a field is nothing that JSON has.
        """
        fields = msgspec.to_builtins(fields)
        if self.closed or self._waiting or not self._outbox.ready():
            return False
        id_ = self._outbox.name(self._outbox.number())
        self._outbox.send("prepare", id_, {"session_id": self.session.key, **fields})
        return True

    def cancel(self, state: TurnState) -> None:
        """End a turn, if it is the one that was said last and is not over."""
        if state.over or state.asked is not None or state is not self.current:
            return
        state.silence(Ask.CANCEL)
        if state in self._waiting:
            self._waiting.remove(state)
            state.end(Done(request_id=state.id, cancelled=True))
        else:
            self._outbox.send_cancel(state)

    def request(self, type_: str, fields: dict[str, Value]) -> Request:
        """Ask for something that has one answer; it is asked again where the connection is lost before that.

        Raises:
            TypeError: a field is nothing that JSON has.
        """
        fields, number = msgspec.to_builtins(fields), self._outbox.number()
        request = Request(number, self._outbox.name(number), type_, fields)
        self._submit(request)
        return request

    def heard(self, state: TurnState, fields: dict[str, Value]) -> Request:
        """Say how much of a reply was heard. A turn that no server has begun has no reply.

        Raises:
            TypeError: a field is nothing that JSON has.
        """
        fields = msgspec.to_builtins(fields)
        request = Request(self._outbox.number(), state.id, "heard", {"session_id": self.session.key, **fields})
        if state is not self._inquiry.last and not state.acknowledged:
            request.fail(RefusedError("no_such_reply", "nothing of this turn has come"))
        else:
            self._submit(request)
        return request

    def end(self) -> None:
        """Leave: what runs ends, and nothing is sent any more."""
        if not self.closed:
            self.closed = True
            for turn in self._outbox.turns():
                turn.silence(Ask.CANCEL)
            if self._connected:
                self._outbox.send("end", self._outbox.name("end"), {})
            self.give_up(ClosedError("the client is closed"), for_good=True)

    def give_up(self, error: YapError, *, for_good: bool) -> None:
        """Tell everything that waits that there is no server, and for good also what comes later."""
        if for_good and self.dead is None:
            self.dead = error
        for exchange in self._outbox.empty():
            exchange.fail(error)

    # What the socket tells

    def connected(self) -> None:
        """A socket is open: greet the server, and ask whether it knows the session."""
        outbox = self._outbox
        self._connected, outbox.greeted = True, False
        outbox.proven = outbox.draining = False
        self.refusal = None
        outbox.send("ping", outbox.name("hello"), {})
        self._inquiry.connected()

    def received(self, text: str | bytes) -> None:
        """Take a text of the server's.

        Raises:
            ProtocolError: it is no frame.
        """
        frame = events.decode(text)
        id_ = frame.request_id
        if isinstance(frame, Ack) and frame.to == "heard":
            self._answers.of_heard(str(id_), frame)
            return
        exchange = self._open.get(id_) if isinstance(id_, str) else None
        if isinstance(exchange, TurnState):
            self._answers.of_turn(exchange, frame)
        elif isinstance(exchange, Request):
            self._answers.of_request(exchange, frame)
        elif isinstance(id_, str) and id_ in self._outbox.cancels:
            self._answers.of_cancel(self._outbox.cancels.pop(id_), frame)
        elif isinstance(id_, str) and id_ in self._outbox.heards and isinstance(frame, Error):
            self._answers.of_heard(id_, frame)
        elif isinstance(frame, Error) and id_ is None and frame.error_code in REFUSALS:
            self.refusal = REFUSALS[frame.error_code](f"{frame.error_code}: {frame.message}")
        elif isinstance(frame, Error) and id_ is None:
            self._answers.of_heard("", frame)
        elif isinstance(frame, Pong):
            if not self.greeted:
                self._outbox.greeted = True
                self.welcomed()
                self._outbox.pump()
        elif isinstance(frame, Draining):
            self._outbox.draining = True
            if any(isinstance(each, TurnState) and each.asked is None for each in self._waiting):
                self._outbox.cancel_open()

    def lost(self, reason: str, code: int | None = None) -> None:
        """The socket is closed: turns that were on it are cut, and what can be asked again is."""
        if not self._connected:
            return
        self._connected = False
        opened, heards = self._outbox.lost()
        opened = [each for each in opened if not self._inquiry.asks(each)]
        self._inquiry.lost()
        for exchange in (*opened, *heards):
            if code == TOO_BIG and not (isinstance(exchange, TurnState) and exchange.acknowledged):
                exchange.fail(RefusedError("message_too_big", "the server takes no message of this size"))
            elif isinstance(exchange, TurnState):
                self._answers.cut(exchange, reason)
            elif exchange.attempts < MOST_ATTEMPTS and not self.closed:
                self._outbox.add_again(exchange)
            elif self.closed:
                exchange.fail(ClosedError("the client is closed"))
            else:
                exchange.fail(ServerGoneError(f"lost the connection before the answer: {reason}"))

    def _submit(self, exchange: Exchange) -> None:
        if self.dead is not None:
            exchange.fail(self.dead)
        else:
            self._outbox.add(exchange)
