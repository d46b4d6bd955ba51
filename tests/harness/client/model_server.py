"""A model of the server's side of the protocol: no socket, no task, no clock. A test decides what happens when.

It is written from docs/protocol.md, with the rules of sessions, history, barge-in, cancel, drain and `heard`, and keeps
what each turn was begun with.
"""

from __future__ import annotations

import copy
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

Frame = dict[str, Any]
History = list[tuple[str, str]]

TOKENS = 3


@dataclass
class ModelSession:
    """What a server keeps of a session."""

    persona: str = ""
    history: History = field(default_factory=list)
    last: tuple[str, str, bool] | None = None  # id, said and whether it was kept, of the last reply
    held: bool = False  # whether the last message is that reply
    owner: ModelConnection | None = None
    turn: ModelTurn | None = None
    unended: str | None = None  # words of a turn that another server began, and of which it has written no end

    def cut(self, chars: int) -> None:
        """Keep so many characters of the last reply."""
        if self.last is not None and self.last[2]:
            if self.held:
                self.history.pop()
            heard = self.last[1][:chars]
            self.held = bool(heard.strip())
            if self.held:
                self.history.append(("assistant", heard))


@dataclass
class ModelTurn:
    """A turn that runs: how far it is, and what was sent of it."""

    id: str
    utterance: str
    connection: ModelConnection
    session: ModelSession
    said: str = ""
    tokens: int = 0
    heard: int | None = None

    def end(self, why: str, request_id: str | None = None) -> None:
        """End the turn, for a reason: `done`, `cancel`, `barge_in`, `disconnect` or `failed`."""
        send, session = self.connection.send, self.session
        session.turn = None
        if why == "failed":
            send({"type": "error", "error_code": "generation_failed", "message": "", "request_id": self.id})
            send({"type": "done", "failed": True, "request_id": self.id})
        elif why == "done":
            send({"type": "final", "normalized_text": self.said, "request_id": self.id})
            usage = {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": self.tokens, "duration_ms": 1.0}
            send({"type": "done", "usage": usage, "request_id": self.id})
        else:
            send({"type": "done", "cancelled": True, "request_id": request_id or self.id})
        kept = why == "done" or (why != "failed" and (bool(self.said) or why == "barge_in"))
        session.last, session.held = (self.id, self.said, kept), False
        if kept and self.utterance.strip():
            session.history.append(("user", self.utterance))
        session.cut(len(self.said) if self.heard is None else self.heard)
        self.connection.server.note(session)


@dataclass
class ModelServer:
    """One server process.

    Attributes:
        sessions: what it keeps.
        begun: the session's key, persona, history and utterance of each turn, as it began.
        draining: whether it goes away.
        refuses: error codes with which the next turns are refused.
        prefix: what precedes a followup's analysis.
    """

    sessions: dict[str, ModelSession] = field(default_factory=dict)
    begun: list[tuple[str, str, History, str]] = field(default_factory=list)
    draining: bool = False
    refuses: deque[str] = field(default_factory=deque)
    prefix: str = ""
    written: dict[str, list[ModelSession]] = field(default_factory=dict)  # each session as it was after each change

    def connect(self) -> ModelConnection:
        """Admit a client."""
        connection = ModelConnection(self)
        if self.draining:
            connection.drain()
        return connection

    def note(self, session: ModelSession) -> None:
        """Write a session to the store, which may know less of it in the end: see `stored`."""
        key = next((key for key, kept in self.sessions.items() if kept is session), None)
        if key is not None:
            copied = ModelSession(session.persona, copy.copy(session.history), session.last, session.held)
            copied.unended = session.turn.utterance if session.turn is not None else session.unended
            self.written.setdefault(key, []).append(copied)

    def stored(self, *, replies: bool, behind: int = 0) -> dict[str, ModelSession]:
        """What another server finds in a store: sessions as of some changes ago, perhaps without the last reply."""
        found = {}
        for key, writes in self.written.items():
            if behind < len(writes):
                found[key] = copy.copy(writes[-1 - behind])
                found[key].history = copy.copy(found[key].history)
                if not replies:
                    found[key].last, found[key].held = None, False
        return found


@dataclass(eq=False)
class ModelConnection:
    """One client's connection: messages that wait, and frames that were sent."""

    server: ModelServer
    outbox: deque[str] = field(default_factory=deque)
    waiting: deque[Frame] = field(default_factory=deque)
    cancelled: dict[str, str] = field(default_factory=dict)  # ids of waiting turns, each with its cancel's
    turn: ModelTurn | None = None
    session: ModelSession | None = None
    closed: bool = False

    def send(self, frame: Frame) -> None:
        """Send a frame, unless the connection has ended."""
        if not self.closed:
            self.outbox.append(json.dumps(frame))

    def receive(self, text: str) -> None:
        """Take a message: what is done at once is, the rest waits for `work`."""
        message = json.loads(text)
        kind, id_ = message["type"], message.get("request_id")
        if kind == "ping":
            self.send({"type": "pong", "request_id": id_})
        elif kind == "heard":
            self._heard(message)
        elif kind == "cancel":
            self._cancel(id_)
        elif kind == "end":
            self.send({"type": "connection_closed", "reason": "client_request", "request_id": id_})
            self.end()
        elif kind != "pong":
            if self.server.draining:
                self._refuse(message, "draining")
            else:
                self.waiting.append(message)

    def work(self) -> None:
        """Do the next message that waits, or go on with the turn."""
        if self.waiting:
            self._do(self.waiting.popleft())
        elif self._running() is not None:
            self.speak()

    def speak(self) -> None:
        """Send the turn's next token, or its end."""
        turn = self._running()
        if turn is None:
            return
        if turn.tokens == TOKENS:
            turn.end("done")
            return
        text = f"{turn.id}.{turn.tokens} "
        turn.tokens += 1
        turn.said += text
        self.send({"type": "token", "text": text, "request_id": turn.id})

    def fail(self) -> None:
        """Let the turn fail."""
        if (turn := self._running()) is not None:
            turn.end("failed")

    def drain(self) -> None:
        """Tell the client that the server goes away."""
        self.send({"type": "draining", "deadline_s": 1, "reconnect": True})
        while self.waiting:
            self._refuse(self.waiting.popleft(), "draining")

    def end(self) -> None:
        """The connection ends, whoever ended it; a turn that ran is aborted."""
        if (turn := self._running()) is not None:
            turn.end("disconnect")
        self.closed = True
        for session in self.server.sessions.values():
            if session.owner is self:
                session.owner = None

    def _running(self) -> ModelTurn | None:
        turn = self.turn
        return turn if turn is not None and turn.session.turn is turn else None

    def _do(self, message: Frame) -> None:
        kind, id_, key = message["type"], message["request_id"], message.get("session_id")
        sessions = self.server.sessions
        if kind == "prepare":
            return  # answered by nothing but errors
        if kind == "warm_persona":
            self.send({"type": "warmed", "segment": "persona_static", "tokens": 1, "bytes": 1, "request_id": id_})
        elif kind == "warm_history":
            if key is not None and key not in sessions and "persona_text" not in message:
                self._refuse(message, "no_active_session")
            else:
                self.send({"type": "warmed", "segment": "history", "tokens": 1, "bytes": 1, "request_id": id_})
        elif kind in ("followup", "chat_prompt"):
            session = sessions.get(key) if key is not None else self.session
            if session is None or session.owner not in (None, self):
                self._refuse(message, "no_active_session")
            elif kind == "chat_prompt":
                session.persona = message["persona_text"]
                self.server.note(session)
                self.send({"type": "ack", "for": kind, "ok": True, "code": 200, "message": "", "request_id": id_})
            else:
                self._begin(session, message, self.server.prefix + message["analysis_text"])
        elif self.server.refuses:
            self._refuse(message, self.server.refuses.popleft())
        else:
            session = sessions.setdefault(message["session_id"], ModelSession())
            self._begin(session, message, message.get("user_utterance", ""))

    def _begin(self, session: ModelSession, message: Frame, utterance: str) -> None:
        for old in (self._running(), session.turn):
            if old is not None and old.session.turn is old:
                old.end("barge_in")
        if self.session is not None and self.session.owner is self:
            self.session.owner = None
        session.owner, self.session = self, session
        if session.unended is not None and session.unended != utterance:  # else it was sent again
            session.history.append(("user", session.unended))
        session.unended = None
        if message["type"] == "start":
            session.persona = message.get("persona_text", session.persona)
            if "history" in message:
                session.history = [(each["role"], each["content"]) for each in message["history"]]
                session.held = False
        key = next(key for key, kept in self.server.sessions.items() if kept is session)
        self.server.begun.append((key, session.persona, list(session.history), utterance))
        id_ = message["request_id"]
        ack = {"type": "ack", "for": message["type"], "ok": True, "session_id": key, "now": "", "request_id": id_}
        self.send({**ack, "gender": None, "personality": None, "chat_prompt": bool(session.persona)})
        self.turn = session.turn = ModelTurn(id_, utterance, self, session)
        session.last = None
        self.server.note(session)
        if id_ in self.cancelled:
            self.turn.end("cancel", self.cancelled.pop(id_))
        elif message["type"] == "start":
            self.send({"type": "toolcall", "status": "no", "raw": [], "request_id": id_})

    def _cancel(self, id_: str) -> None:
        turns = [each["request_id"] for each in self.waiting if each["type"] in ("start", "followup")]
        running = self._running()
        if running is not None:
            running.end("cancel", None if turns else id_)
        for turn in turns[:-1]:
            self.cancelled[turn] = turn
        if turns:
            self.cancelled[turns[-1]] = id_
        elif running is None:
            self.send({"type": "done", "cancelled": True, "request_id": id_})

    def _heard(self, message: Frame) -> None:
        id_, key = message.get("request_id"), message.get("session_id")
        session = self.server.sessions.get(key) if key is not None else self.session
        if session is None or session.owner not in (None, self):
            self._refuse(message, "no_active_session")
            return
        turn = session.turn
        last = (turn.id, turn.said) if turn is not None else session.last and session.last[:2]
        if session.unended is not None:
            last = None
        if last is None or id_ not in (None, last[0]):
            self._refuse(message, "no_such_reply")
            return
        text = message.get("text")
        chars = message["chars"] if text is None else len(text)
        if chars > len(last[1]) or (text is not None and not last[1].startswith(text)):
            self._refuse(message, "chars_out_of_range" if text is None else "invalid_text")
            return
        if turn is not None:
            turn.heard = chars
        else:
            session.cut(chars)
            self.server.note(session)
        ack = {"type": "ack", "for": "heard", "ok": True, "session_id": key, "chars": chars, "request_id": id_}
        self.send(ack)

    def _refuse(self, message: Frame, code: str) -> None:
        id_ = message.get("request_id")
        extra = {"retry_in": 1} if code.endswith("_rate_limited") else {}
        if code == "message_rate_limited" and (turn := self._running()) is not None:
            turn.end("barge_in")
        refused: Frame = {"error_code": code, "message": "", "request_id": id_, **extra}
        if message["type"] == "chat_prompt":
            self.send({"type": "ack", "for": "chat_prompt", "ok": False, "code": 400, **refused})
        else:
            self.send({"type": "error", **refused})
        if id_ in self.cancelled:
            self.send({"type": "done", "cancelled": True, "request_id": self.cancelled.pop(id_)})
