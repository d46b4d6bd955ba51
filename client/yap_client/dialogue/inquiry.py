"""The inquiry at the beginning of a connection: whether the server knows the session, and all that was said in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from yap_client.dialogue.exchanges import Request, TurnState
from yap_client.dialogue.outbox import Outbox
from yap_client.errors import RefusedError
from yap_client.session import Value

# As the protocol bounds it.
MOST_CHARS = 2**31
# So many turns back it is asked which was the last one that a server has, as many as the store may be behind.
MOST_TURNS = 32


class Inquiry:
    """Asks a server what it has of the session, and has the next turn carry the rest.

    Args:
        outbox: what is sent.

    Attributes:
        last: the turn that a server has begun last, which `heard` may cut; none before there is one.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._session = outbox.session
        self.last: TurnState | None = None
        self._begun: deque[TurnState] = deque(maxlen=MOST_TURNS)  # those that a server has begun, newest last
        self._unheard_of: TurnState | None = None  # one that was cut and may have begun, or not
        self._looking: Request | None = None  # whether anybody knew the session before the first turn

    def connected(self) -> None:
        """Ask what a server has that the client has just come to."""
        last = self._unheard_of or self.last
        if self._session.begun and last is not None:
            self._ask_reply(last)
        elif not self._session.transcript.complete:
            self._ask_whether_new()

    def asks(self, exchange: object) -> bool:
        """Whether an exchange is a question of this inquiry: it is not asked again by itself."""
        return exchange is not None and exchange in (self._outbox.asking, self._looking)

    def lost(self) -> None:
        """Forget the question before the first turn: its connection is gone."""
        self._looking = None

    def began(self, turn: TurnState) -> None:
        """Take note of a turn that a server has begun."""
        self.last, self._unheard_of = turn, None
        self._begun.append(turn)

    def cut(self, turn: TurnState) -> None:
        """Take note of a turn whose connection was lost."""
        if not turn.acknowledged:
            self._unheard_of = turn

    def ask_session(self) -> None:
        """Ask whether the session is kept, whoever owns it; a history that somebody else began is not overwritten."""
        outbox = self._outbox
        fields: dict[str, Value] = {"session_id": self._session.key, "history": []}
        self._ask("warm_history", outbox.name(outbox.number()), fields, self._told_of_session)

    def _ask(self, type_: str, id_: str, fields: dict[str, Value], told: Callable[[], None]) -> None:
        """Ask the server something before anything else is said to it."""
        outbox = self._outbox
        outbox.asking = asked = Request(0, id_, type_, fields)

        def answered() -> None:
            if outbox.asking is asked:
                told()
                if outbox.asking is asked:
                    outbox.asking = None
                outbox.pump()

        asked.wake = answered
        if type_ == "heard":
            outbox.send_heard(asked)
        else:
            outbox.send_open(asked)

    def _ask_reply(self, turn: TurnState) -> None:
        """Ask about a reply, by saying how much of it came: more than that has never been heard."""
        # Nothing of a turn that was cut: then even one is too many, unless the server has said more than arrived.
        chars = 1 if _nothing_came(turn) else len(turn.said) if turn.heard is None else turn.heard
        fields: dict[str, Value] = {"session_id": self._session.key, "chars": chars}
        self._ask("heard", turn.id, fields, lambda: self._told_of_reply(turn))

    def _told_of_reply(self, turn: TurnState) -> None:
        """Learn from the answer whether the server has what was said.

        Whoever has the last reply has all that was said before it. A server to which the store brought the session may
        have less: one that is killed, or slow, has not written the newest turns.
        """
        code, session = self._asked_code(), self._session
        never_began = turn is self._unheard_of and code == "no_such_reply"
        newest = turn in (self._unheard_of, self.last)
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
            self._outbox.add_again(Request(0, turn.id, "heard", {"session_id": session.key, "chars": 0}))
        else:
            session.doubted()
        self._outbox.proven = True

    def _told_of_others(self) -> None:
        """Learn whether the last reply is one that somebody else got: then nothing of that is overwritten."""
        code = self._asked_code()
        if self._unusable(code):
            return
        if code == "chars_out_of_range":
            self._session.transcript.complete = False
        else:
            self._session.doubted()
        self._outbox.proven = True

    def _asked_code(self) -> str | None:
        """The code of the error with which the question was answered; none where there was none."""
        error = self._outbox.asking and self._outbox.asking.error
        return error.code if isinstance(error, RefusedError) else None

    def _unusable(self, code: str | None) -> bool:
        """Whether an answer says that the server has no session for this client, which is then told everything."""
        if code not in ("no_active_session", "unknown_message_type", "chat_not_deployed"):
            return False
        if self._session.transcript.complete and self._session.own:
            self._session.forgotten()
        else:
            self.ask_session()
        return True

    def _told_of_session(self) -> None:
        if self._asked_code() == "no_active_session":
            self._session.forgotten()

    def _ask_whether_new(self) -> None:
        """Ask whether a session that was named is known; where nobody knows it, all that is said in it is said here.

        Nothing waits for the answer: the server looks before it begins a turn.
        """
        outbox = self._outbox
        fields: dict[str, Value] = {"session_id": self._session.key, "history": []}
        self._looking = asked = Request(0, outbox.name(outbox.number()), "warm_history", fields)
        version = self._session.version

        def answered() -> None:
            unknown = isinstance(asked.error, RefusedError) and asked.error.code == "no_active_session"
            if unknown and version == self._session.version:
                self._session.transcript.complete = True

        asked.wake = answered
        outbox.send_open(asked)


def _nothing_came(turn: TurnState) -> bool:
    """Whether a turn's connection was lost before the first word of its reply."""
    return turn.cut and not turn.said
