"""The dialogue: what is said over a client's socket, without a socket.

Texts that the server sent go in, texts for the server come out, and events come to the turns that they belong to. Who
reads and writes the socket tells of its beginning and its end.

    said ──► waits ──► sent ──► acknowledged ──► done
               ▲         │            │
               └─refused─┘            └── connection lost ──► interrupted
                (draining)
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count

import msgspec

from yap_client import events
from yap_client.errors import (
    AuthenticationError,
    CapacityError,
    ClosedError,
    ProtocolError,
    RateLimitError,
    RefusedError,
    ServerGoneError,
    YapError,
)
from yap_client.events import Ack, Done, Draining, Error, Frame, Interrupted, Pong, Token, Unknown
from yap_client.exchanges import Ask, Exchange, Request, TurnState, nothing
from yap_client.session import Session, Value, sendable, sendable_text

TOO_BIG = 1009
# What may be sent again so often, where one connection after the other is lost.
MOST_ATTEMPTS = 5
# As the protocol bounds it.
MOST_CHARS = 2**31
# So many turns back it is asked which was the last one that a server has, as many as the store may be behind.
MOST_TURNS = 32
REFUSALS: Mapping[str, type[YapError]] = {
    "authentication_failed": AuthenticationError,
    "server_at_capacity": CapacityError,
    "connection_quota_exceeded": CapacityError,
    "invalid_session": ProtocolError,
}
# A turn's own errors; others that carry its id answer a `heard` about it.
FAILURES = frozenset({"generation_failed", "generation_timeout", "internal_error"})


class Dialogue:
    """One client's conversation with whatever server it is connected to.

    Attributes:
        session: what is said, and what the server has been told.
        outgoing: texts that are to be sent, in their order.
        flush: called when there are any.
        welcomed: called when the server has taken the client.
        greeted: whether it has, on this connection.
        proven: whether the server has done anything for the client on this connection.
        refusal: why the server will not have this connection; none where it will.
        draining: whether the server goes away.
        closed: whether the client has ended it.
        dead: why nothing can be said any more; none while something can.
        current: the turn that was said last.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.outgoing: deque[str] = deque()
        self.flush: Callable[[], None] = nothing
        self.welcomed: Callable[[], None] = nothing
        self.proven = False
        self.refusal: YapError | None = None
        self.draining = False
        self.closed = False
        self.dead: YapError | None = None
        self.current: TurnState | None = None
        self._last: TurnState | None = None  # the one that a server has begun last, which `heard` may cut
        self._begun: deque[TurnState] = deque(maxlen=MOST_TURNS)  # those that a server has begun, newest last
        self._unheard_of: TurnState | None = None  # one that was cut and may have begun, or not
        self._connected = False  # whether there is a socket
        self.greeted = False
        self._asking: Request | None = None  # whether the server knows the session
        self._looking: Request | None = None  # whether anybody knew it before the first turn
        self._waiting: list[Exchange] = []  # what was not sent yet
        self._open: dict[str, Exchange] = {}  # what was sent and is not over
        self._heards: dict[str, deque[Request]] = {}  # by the turn that they are about
        self._cancels: dict[str, TurnState] = {}  # by their own ids
        self._nonce = uuid.uuid4().hex[:6]  # another client of the same session has other ids
        self._numbers = count(1)  # of everything that is said

    # What the client wants

    def say(self, type_: str, fields: dict[str, Value], utterance: str) -> TurnState:
        """Begin a turn. The one that runs is over for the listener from now on.

        Raises:
            TypeError: a field is nothing that JSON has.
        """
        fields, number = msgspec.to_builtins(fields), next(self._numbers)
        state = TurnState(number, f"{self._nonce}-{number}", type_, fields, sendable_text(utterance))
        old, self.current = self.current, state
        if old is not None and not old.over:
            old.silence(Ask.BARGE_IN)
            if self.draining:
                self._cancel_open()  # the server would refuse the new turn, and go on with the old one
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
        ready = self.greeted and self._asking is None and not (self.draining or self.closed or self._waiting)
        if not ready or self._blocked():
            return False
        self._send("prepare", f"{self._nonce}-{next(self._numbers)}", {"session_id": self.session.key, **fields})
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
            self._send_cancel(state)

    def request(self, type_: str, fields: dict[str, Value]) -> Request:
        """Ask for something that has one answer; it is asked again where the connection is lost before that.

        Raises:
            TypeError: a field is nothing that JSON has.
        """
        fields, number = msgspec.to_builtins(fields), next(self._numbers)
        request = Request(number, f"{self._nonce}-{number}", type_, fields)
        self._submit(request)
        return request

    def heard(self, state: TurnState, fields: dict[str, Value]) -> Request:
        """Say how much of a reply was heard. A turn that no server has begun has no reply.

        Raises:
            TypeError: a field is nothing that JSON has.
        """
        fields = msgspec.to_builtins(fields)
        request = Request(next(self._numbers), state.id, "heard", {"session_id": self.session.key, **fields})
        if state is not self._last and not state.acknowledged:
            request.fail(RefusedError("no_such_reply", "nothing of this turn has come"))
        else:
            self._submit(request)
        return request

    def end(self) -> None:
        """Leave: what runs ends, and nothing is sent any more."""
        if not self.closed:
            self.closed = True
            for turn in self._open.values():
                if isinstance(turn, TurnState):
                    turn.silence(Ask.CANCEL)
            if self._connected:
                self._send("end", f"{self._nonce}-end", {})
            self.give_up(ClosedError("the client is closed"), for_good=True)

    def give_up(self, error: YapError, *, for_good: bool) -> None:
        """Tell everything that waits that there is no server, and for good also what comes later."""
        if for_good and self.dead is None:
            self.dead = error
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            exchange.fail(error)

    # What the socket tells

    def connected(self) -> None:
        """A socket is open: greet the server, and ask whether it knows the session."""
        self._connected, self.greeted = True, False
        self.proven = self.draining = False
        self.refusal = None
        self._send("ping", f"{self._nonce}-hello", {})
        last = self._unheard_of or self._last
        if self.session.begun and last is not None:
            self._ask_reply(last)
        elif not self.session.transcript.complete:
            self._ask_whether_new()

    def received(self, text: str | bytes) -> None:
        """Take a text of the server's.

        Raises:
            ProtocolError: it is no frame.
        """
        frame = events.decode(text)
        id_ = frame.request_id
        if isinstance(frame, Ack) and frame.to == "heard":
            self._answer_heard(str(id_), frame)
            return
        exchange = self._open.get(id_) if isinstance(id_, str) else None
        if isinstance(exchange, TurnState):
            self._on_turn(exchange, frame)
        elif isinstance(exchange, Request):
            self._on_request(exchange, frame)
        elif isinstance(id_, str) and id_ in self._cancels:
            self._on_cancel(self._cancels.pop(id_), frame)
        elif isinstance(id_, str) and id_ in self._heards and isinstance(frame, Error):
            self._answer_heard(id_, frame)
        elif id_ is None and "" in self._heards and isinstance(frame, Error) and frame.error_code not in REFUSALS:
            self._answer_heard("", frame)
        elif isinstance(frame, Pong):
            if not self.greeted:
                self.greeted = True
                self.welcomed()
                self._pump()
        elif isinstance(frame, Draining):
            self.draining = True
            if any(isinstance(each, TurnState) and each.asked is None for each in self._waiting):
                self._cancel_open()
        elif isinstance(frame, Error) and id_ is None and frame.error_code in REFUSALS:
            self.refusal = REFUSALS[frame.error_code](f"{frame.error_code}: {frame.message}")

    def lost(self, reason: str, code: int | None = None) -> None:
        """The socket is closed: turns that were on it are cut, and what can be asked again is."""
        if not self._connected:
            return
        self._connected = self.greeted = self.draining = False
        opened = [each for each in self._open.values() if each not in (self._asking, self._looking)]
        heards = [each for group in self._heards.values() for each in group if each is not self._asking]
        self._open.clear()
        self._heards.clear()
        self._cancels.clear()
        self.outgoing.clear()
        self._asking = self._looking = None
        for exchange in (*opened, *heards):
            if code == TOO_BIG and not (isinstance(exchange, TurnState) and exchange.acknowledged):
                exchange.fail(RefusedError("message_too_big", "the server takes no message of this size"))
            elif isinstance(exchange, TurnState):
                self._cut(exchange, reason)
            elif exchange.attempts < MOST_ATTEMPTS and not self.closed:
                self._wait_again(exchange)
            elif self.closed:
                exchange.fail(ClosedError("the client is closed"))
            else:
                exchange.fail(ServerGoneError(f"lost the connection before the answer: {reason}"))

    # Sending

    def _submit(self, exchange: Exchange) -> None:
        if self.dead is not None:
            exchange.fail(self.dead)
        else:
            self._waiting.append(exchange)
            self._pump()

    def _wait_again(self, exchange: Exchange) -> None:
        self._waiting.append(exchange)
        self._waiting.sort(key=lambda each: each.number)

    def _pump(self) -> None:
        """Send what waits, in its order, as far as the server can take it."""
        while self._waiting and self.greeted and self._asking is None and not (self.draining or self._blocked()):
            exchange = self._waiting.pop(0)
            exchange.sent = True
            exchange.attempts += 1
            if isinstance(exchange, TurnState):
                self._send_turn(exchange)
            elif exchange.type == "heard" and isinstance(exchange, Request):
                self._heards.setdefault(exchange.id, deque()).append(exchange)
                self._send(exchange.type, exchange.id, exchange.fields)
            elif isinstance(exchange, Request) and exchange.type == "chat_prompt" and self._outdated(exchange):
                exchange.complete(None)  # the next turn carries what is wanted
            else:
                self._open[exchange.id] = exchange
                self._send(exchange.type, exchange.id, exchange.fields)
        if any(isinstance(each, TurnState) for each in self._waiting) and not self.draining:
            for turn in self._unwritten():
                if turn.asked is Ask.BARGE_IN and not turn.doubtful:
                    self._send_cancel(turn)  # what waits for its end would have ended it

    def _blocked(self) -> bool:
        """Whether it depends on an answer what the next message has to carry."""
        if self._heards and self.session.history_due:
            return True  # how much of the last reply the history has is about to be told
        turns = [each for each in self._open.values() if isinstance(each, TurnState)]
        return any(_carries(each) or _in_doubt(each) for each in turns) or bool(self._unwritten())

    def _unwritten(self) -> list[TurnState]:
        """Turns whose end has to be known before the history can be sent: what is left of them belongs to it."""
        if not self.session.history_due:
            return []
        turns = (each for each in self._open.values() if isinstance(each, TurnState))
        return [each for each in turns if each.version == self.session.version and not _carries(each)]

    def _outdated(self, request: Request) -> bool:
        """Whether there is no session whose persona could be set, or another one is wanted by now."""
        session = self.session
        return not session.begun or session.wanted("persona_text") != request.fields["persona_text"]

    def _send_turn(self, turn: TurnState) -> None:
        session = self.session
        turn.version = session.version
        self._open[turn.id] = turn
        if turn.type == "followup" and session.begun and not session.history_due and not turn.as_start:
            turn.carried = {}
            self._send("followup", turn.id, {"session_id": session.key, **turn.fields})
            return
        turn.carried = session.due()
        fields = dict(turn.fields)
        if turn.type == "followup":
            # Only a start can bring a server to know the session.
            turn.as_start = True
            fields["user_utterance"] = turn.utterance
            fields.pop("analysis_text", None)
        sampling = {**_object(turn.carried.get("sampling")), **_object(fields.pop("sampling", None))}
        self._send("start", turn.id, {"session_id": session.key, **turn.carried, **fields, **_some(sampling=sampling)})

    def _send_cancel(self, turn: TurnState) -> None:
        id_ = f"{self._nonce}-{next(self._numbers)}"
        self._cancels[id_] = turn
        for each in self._open.values():
            if isinstance(each, TurnState):
                each.doubtful = True
        self._send("cancel", id_, {})

    def _cancel_open(self) -> None:
        """End on the server what is over for the listener, where no new turn does that."""
        for turn in self._open.values():
            if isinstance(turn, TurnState) and turn.asked is Ask.BARGE_IN and turn not in self._cancels.values():
                self._send_cancel(turn)

    def _send(self, type_: str, id_: str, fields: dict[str, Value]) -> None:
        named: dict[str, Value] = {"request_id": id_} if id_ else {}
        message: dict[str, Value] = {"type": type_, **named, **fields}
        try:
            encoded = msgspec.json.encode(message)
        except UnicodeEncodeError:
            encoded = msgspec.json.encode(sendable(message))
        self.outgoing.append(encoded.decode())
        self.flush()

    # Whether the server knows the session

    def _ask(self, type_: str, id_: str, fields: dict[str, Value], told: Callable[[], None]) -> None:
        """Ask the server something before anything else is said to it."""
        self._asking = asked = Request(0, id_, type_, fields)

        def answered() -> None:
            if self._asking is asked:
                told()
                if self._asking is asked:
                    self._asking = None
                self._pump()

        asked.wake = answered
        if type_ == "heard":
            self._heards.setdefault(id_, deque()).append(asked)
        else:
            self._open[id_] = asked
        self._send(type_, id_, fields)

    def _ask_reply(self, turn: TurnState) -> None:
        """Ask about a reply, by saying how much of it came: more than that has never been heard."""
        # Nothing of a turn that was cut: then even one is too many, unless the server has said more than arrived.
        chars = 1 if _nothing_came(turn) else len(turn.said) if turn.heard is None else turn.heard
        fields: dict[str, Value] = {"session_id": self.session.key, "chars": chars}
        self._ask("heard", turn.id, fields, lambda: self._told_of_reply(turn))

    def _told_of_reply(self, turn: TurnState) -> None:
        """Learn from the answer whether the server has what was said.

        Whoever has the last reply has all that was said before it. A server to which the store brought the session may
        have less: one that is killed, or slow, has not written the newest turns.
        """
        code, session = self._asked_code(), self.session
        never_began = turn is self._unheard_of and code == "no_such_reply"
        newest = turn in (self._unheard_of, self._last)
        if turn is self._unheard_of:
            self._unheard_of = None
        if self._unusable(code):
            return
        if code == "no_such_reply" and (never_began or not session.own):
            if earlier := [each for each in self._begun if each.number < turn.number]:
                self._ask_reply(earlier[-1])
            else:
                # Without an id: about the last reply, whoever got it, and more of it than there can be.
                self._ask("heard", "", {"session_id": session.key, "chars": MOST_CHARS}, self._told_of_others)
            return
        if newest and code == ("chars_out_of_range" if _nothing_came(turn) else None):
            session.confirmed(turn.number)
        elif newest and code is None and not session.transcript.complete:
            self._wait_again(Request(0, turn.id, "heard", {"session_id": session.key, "chars": 0}))
        else:
            session.doubted()
        self.proven = True

    def _told_of_others(self) -> None:
        """Learn whether the last reply is one that somebody else got: then nothing of that is overwritten."""
        code = self._asked_code()
        if self._unusable(code):
            return
        if code == "chars_out_of_range":
            self.session.transcript.complete = False
        else:
            self.session.doubted()
        self.proven = True

    def _asked_code(self) -> str | None:
        """The code of the error with which the question was answered; none where there was none."""
        error = self._asking and self._asking.error
        return error.code if isinstance(error, RefusedError) else None

    def _unusable(self, code: str | None) -> bool:
        """Whether an answer says that the server has no session for this client, which is then told everything."""
        if code not in ("no_active_session", "unknown_message_type", "chat_not_deployed"):
            return False
        if self.session.transcript.complete and self.session.own:
            self.session.forgotten()
        else:
            self._ask_session()
        return True

    def _ask_session(self) -> None:
        """Ask whether the session is kept, whoever owns it; a history that somebody else began is not overwritten."""
        fields: dict[str, Value] = {"session_id": self.session.key, "history": []}
        self._ask("warm_history", f"{self._nonce}-{next(self._numbers)}", fields, self._told_of_session)

    def _ask_whether_new(self) -> None:
        """Ask whether a session that was named is known; where nobody knows it, all that is said in it is said here.

        Nothing waits for the answer: the server looks before it begins a turn.
        """
        id_ = f"{self._nonce}-{next(self._numbers)}"
        self._looking = asked = Request(0, id_, "warm_history", {"session_id": self.session.key, "history": []})
        version = self.session.version

        def answered() -> None:
            unknown = isinstance(asked.error, RefusedError) and asked.error.code == "no_active_session"
            if unknown and version == self.session.version:
                self.session.transcript.complete = True

        asked.wake = answered
        self._open[id_] = asked
        self._send(asked.type, id_, asked.fields)

    def _told_of_session(self) -> None:
        error = self._asking and self._asking.error
        if isinstance(error, RefusedError) and error.code == "no_active_session":
            self.session.forgotten()

    # Receiving

    def _on_turn(self, turn: TurnState, frame: Frame) -> None:
        if isinstance(frame, Token):
            turn.said += frame.text
            turn.put(frame)
        elif isinstance(frame, Ack):
            turn.acknowledged = self.session.begun = self.proven = True
            self._last, self._unheard_of = turn, None
            self._begun.append(turn)
            self.session.told(turn.carried, turn.version, turn.number)
            turn.put(frame)
            self._pump()
        elif isinstance(frame, Done):
            self._end(turn, frame)
        elif isinstance(frame, Error):
            if not turn.acknowledged:
                self._refused(turn, frame)
            elif turn.id in self._heards and frame.error_code not in FAILURES:
                self._answer_heard(turn.id, frame)
            else:
                turn.put(frame)
        elif isinstance(frame, (events.ToolCall, events.Final, Unknown)):
            turn.put(frame)

    def _on_request(self, request: Request, frame: Frame) -> None:
        del self._open[request.id]
        if not (isinstance(frame, Error) or (isinstance(frame, Ack) and not frame.ok)):
            if request.type == "chat_prompt":
                self.session.told(request.fields, self.session.version, request.number)
            self.proven = True
            request.complete(frame)
        elif frame.error_code == "draining" and request not in (self._asking, self._looking):
            self.draining = True
            self._wait_again(request)
        elif frame.error_code == "no_active_session" and request.type == "chat_prompt":
            request.complete(None)  # the next turn carries it
            self._ask_session()
        else:
            request.undo()
            request.fail(events.refusal(frame))

    def _on_cancel(self, turn: TurnState, frame: Frame) -> None:
        # Above the limit of cancels the turn's own `done` comes all the same.
        if isinstance(frame, Done) and turn.id in self._open:
            self._end(turn, msgspec.structs.replace(frame, request_id=turn.id))

    def _answer_heard(self, turn_id: str, frame: Frame) -> None:
        group = self._heards.get(turn_id)
        if not group:
            return
        request = group.popleft()
        if not group:
            del self._heards[turn_id]
        last = self._last
        if isinstance(frame, Error):
            request.fail(events.refusal(frame))
        elif last is not None and last.id == turn_id and isinstance(frame, Ack) and frame.chars is not None:
            last.heard = frame.chars
            if last.over:
                self.session.transcript.cut(frame.chars)
        request.complete(frame)
        self._pump()

    def _refused(self, turn: TurnState, frame: Error) -> None:
        """The server has not begun a turn."""
        del self._open[turn.id]
        later = any(isinstance(each, TurnState) and each.number > turn.number for each in self._open.values())
        if not (later or frame.error_code.endswith("_rate_limited")):
            self._cancel_open()  # the refused turn has not ended the one before
        if frame.error_code == "draining":
            self.draining = True
            self._retry_turn(turn)
        elif frame.error_code == "no_active_session" and turn.type == "followup" and not turn.as_start:
            turn.as_start = True
            self._retry_turn(turn)
            self._ask_session()
        elif turn.asked is Ask.CANCEL:
            turn.end(Done(request_id=turn.id, cancelled=True))
        else:
            refused = events.refusal(frame)
            if not isinstance(refused, RateLimitError):
                turn.undo()
            turn.fail(refused)
        self._pump()

    def _retry_turn(self, turn: TurnState) -> None:
        if turn.asked is Ask.CANCEL:
            turn.end(Done(request_id=turn.id, cancelled=True))
        elif turn.attempts >= MOST_ATTEMPTS:
            turn.fail(ServerGoneError("every server that was reached is about to go away"))
        else:
            self._wait_again(turn)

    def _end(self, turn: TurnState, done: Done) -> None:
        """A turn has ended on the server: keep of it what the server does."""
        del self._open[turn.id]
        transcript = self.session.transcript
        unasked = done.cancelled and turn.asked is None
        cut = unasked and self.draining  # the server's time was over
        if unasked and not cut:
            transcript.complete = False  # another client has taken the session over
        kept = not done.failed and (not done.cancelled or bool(turn.said) or turn.asked is Ask.BARGE_IN)
        self._keep(turn, kept=kept)
        if _in_doubt(turn):
            self._doubt()
        if cut:
            turn.end(Interrupted(request_id=turn.id, said=turn.said, begun=turn.acknowledged, reason="draining"))
        else:
            turn.end(done)
        self._pump()

    def _cut(self, turn: TurnState, reason: str) -> None:
        """A turn's connection was lost: keep of it what a server does that notices."""
        turn.cut = True
        if not turn.acknowledged:
            self._unheard_of = turn
        if not self.session.begun or (turn.asked is Ask.BARGE_IN and not turn.said):
            self._doubt()  # a server may have begun it, or not
        self._keep(turn, kept=bool(turn.said) or turn.asked is Ask.BARGE_IN)
        if turn.asked is None:
            turn.end(Interrupted(request_id=turn.id, said=turn.said, begun=turn.acknowledged, reason=reason))
        else:
            turn.end(Done(request_id=turn.id, cancelled=True))

    def _doubt(self) -> None:
        """Let the next turn carry the history: what the server keeps of a turn is not sure."""
        self.session.history_due = self.session.history_due or self.session.transcript.complete

    def _keep(self, turn: TurnState, *, kept: bool) -> None:
        if kept and turn.version == self.session.version:
            self.session.transcript.add(turn.utterance, turn.said, turn.heard)
        elif turn.acknowledged:
            self.session.transcript.skip()


def _nothing_came(turn: TurnState) -> bool:
    """Whether a turn's connection was lost before the first word of its reply."""
    return turn.cut and not turn.said


def _carries(turn: TurnState) -> bool:
    """Whether a turn carries a history that the server may not have yet."""
    return "history" in turn.carried and not turn.acknowledged


def _in_doubt(turn: TurnState) -> bool:
    """Whether the history keeps a turn's utterance: a cancel before the first word forgets it, a barge-in does not."""
    return turn.doubtful and turn.asked is Ask.BARGE_IN and not turn.said


def _object(value: Value) -> dict[str, Value]:
    return value if isinstance(value, dict) else {}


def _some(**fields: dict[str, Value]) -> dict[str, Value]:
    """Those of the fields that hold anything."""
    return {name: value for name, value in fields.items() if value}
