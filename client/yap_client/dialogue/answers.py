"""The answers: what becomes of a message by what the server says to it, and what the history keeps of a turn."""

from __future__ import annotations

import msgspec

from yap_client import events
from yap_client.dialogue.exchanges import Ask, Request, TurnState
from yap_client.dialogue.inquiry import Inquiry
from yap_client.dialogue.outbox import MOST_ATTEMPTS, Outbox, in_doubt
from yap_client.errors import RateLimitError, ServerGoneError
from yap_client.events import Ack, Done, Error, Frame, Interrupted, Token, Unknown

# A turn's own errors; others that carry its id answer a `heard` about it.
FAILURES = frozenset({"generation_failed", "generation_timeout", "internal_error"})


class Answers:
    """Takes the server's frames to the messages that they answer.

    Args:
        outbox: what was sent.
        inquiry: what the server knows of the session.
    """

    def __init__(self, outbox: Outbox, inquiry: Inquiry) -> None:
        self._outbox = outbox
        self._inquiry = inquiry
        self._session = outbox.session

    def of_turn(self, turn: TurnState, frame: Frame) -> None:
        """Take a frame of a turn."""
        if isinstance(frame, Token):
            turn.said += frame.text
            turn.put(frame)
        elif isinstance(frame, Ack):
            turn.acknowledged = self._session.begun = self._outbox.proven = True
            self._inquiry.began(turn)
            self._session.told(turn.carried, turn.version, turn.number)
            turn.put(frame)
            self._outbox.pump()
        elif isinstance(frame, Done):
            self._end(turn, frame)
        elif isinstance(frame, Error):
            if not turn.acknowledged:
                self._refused(turn, frame)
            elif turn.id in self._outbox.heards and frame.error_code not in FAILURES:
                self.of_heard(turn.id, frame)
            else:
                turn.put(frame)
        elif isinstance(frame, (events.ToolCall, events.Final, Unknown)):
            turn.put(frame)

    def of_request(self, request: Request, frame: Frame) -> None:
        """Take the answer to a request."""
        del self._outbox.open[request.id]
        if not (isinstance(frame, Error) or (isinstance(frame, Ack) and not frame.ok)):
            if request.type == "chat_prompt":
                self._session.told(request.fields, self._session.version, request.number)
            self._outbox.proven = True
            request.complete(frame)
        elif frame.error_code == "draining" and not self._inquiry.asks(request):
            self._outbox.draining = True
            self._outbox.add_again(request)
        elif frame.error_code == "no_active_session" and request.type == "chat_prompt":
            request.complete(None)  # the next turn carries it
            self._inquiry.ask_session()
        else:
            request.undo()
            request.fail(events.refusal(frame))

    def of_cancel(self, turn: TurnState, frame: Frame) -> None:
        """Take the answer to a cancel that was sent for a turn."""
        # Above the limit of cancels the turn's own `done` comes all the same.
        if isinstance(frame, Done) and turn.id in self._outbox.open:
            self._end(turn, msgspec.structs.replace(frame, request_id=turn.id))

    def of_heard(self, turn_id: str, frame: Frame) -> None:
        """Take the answer to a `heard`: about a turn, or about the last one, which has no id."""
        group = self._outbox.heards.get(turn_id)
        if not group:
            return
        request = group.popleft()
        if not group:
            del self._outbox.heards[turn_id]
        last = self._inquiry.last
        if isinstance(frame, Error):
            request.fail(events.refusal(frame))
        elif last is not None and last.id == turn_id and isinstance(frame, Ack) and frame.chars is not None:
            last.heard = frame.chars
            if last.over:
                self._session.transcript.cut(frame.chars)
        request.complete(frame)
        self._outbox.pump()

    def _refused(self, turn: TurnState, frame: Error) -> None:
        """The server has not begun a turn."""
        del self._outbox.open[turn.id]
        later = any(each.number > turn.number for each in self._outbox.turns())
        if not (later or frame.error_code.endswith("_rate_limited")):
            self._outbox.cancel_open()  # the refused turn has not ended the one before
        if frame.error_code == "draining":
            self._outbox.draining = True
            self._retry_turn(turn)
        elif frame.error_code == "no_active_session" and turn.type == "followup" and not turn.as_start:
            turn.as_start = True
            self._retry_turn(turn)
            self._inquiry.ask_session()
        elif turn.asked is Ask.CANCEL:
            turn.end(Done(request_id=turn.id, cancelled=True))
        else:
            refused = events.refusal(frame)
            if not isinstance(refused, RateLimitError):
                turn.undo()
            turn.fail(refused)
        self._outbox.pump()

    def _retry_turn(self, turn: TurnState) -> None:
        if turn.asked is Ask.CANCEL:
            turn.end(Done(request_id=turn.id, cancelled=True))
        elif turn.attempts >= MOST_ATTEMPTS:
            turn.fail(ServerGoneError("every server that was reached is about to go away"))
        else:
            self._outbox.add_again(turn)

    def _end(self, turn: TurnState, done: Done) -> None:
        """A turn has ended on the server: keep of it what the server does."""
        del self._outbox.open[turn.id]
        transcript = self._session.transcript
        unasked = done.cancelled and turn.asked is None
        cut = unasked and self._outbox.draining  # the server's time was over
        if unasked and not cut:
            transcript.complete = False  # another client has taken the session over
        kept = not done.failed and (not done.cancelled or bool(turn.said) or turn.asked is Ask.BARGE_IN)
        self._keep(turn, kept=kept)
        if in_doubt(turn):
            self._doubt()
        if cut:
            turn.end(Interrupted(request_id=turn.id, said=turn.said, begun=turn.acknowledged, reason="draining"))
        else:
            turn.end(done)
        self._outbox.pump()

    def cut(self, turn: TurnState, reason: str) -> None:
        """A turn's connection was lost: keep of it what a server does that notices."""
        turn.cut = True
        self._inquiry.cut(turn)
        if not self._session.begun or (turn.asked is Ask.BARGE_IN and not turn.said):
            self._doubt()  # a server may have begun it, or not
        self._keep(turn, kept=bool(turn.said) or turn.asked is Ask.BARGE_IN)
        if turn.asked is None:
            turn.end(Interrupted(request_id=turn.id, said=turn.said, begun=turn.acknowledged, reason=reason))
        else:
            turn.end(Done(request_id=turn.id, cancelled=True))

    def _doubt(self) -> None:
        """Let the next turn carry the history: what the server keeps of a turn is not sure."""
        self._session.history_due = self._session.history_due or self._session.transcript.complete

    def _keep(self, turn: TurnState, *, kept: bool) -> None:
        if kept and turn.version == self._session.version:
            self._session.transcript.add(turn.utterance, turn.said, turn.heard)
        elif turn.acknowledged:
            self._session.transcript.skip()
