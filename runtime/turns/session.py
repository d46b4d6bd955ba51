"""Sessions: what is kept between turns, and for how long.

A session belongs to (principal, `session_id`): one client's key can never see another's sessions. It outlives its
connection by the idle time, so that a client may reconnect. One connection owns it at a time; the last `start` wins.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from runtime import defaults
from runtime.engines import Sampling
from runtime.host.ratelimit import SlidingWindow
from runtime.text.prompt import Message
from runtime.turns.heard import LastReply
from runtime.turns.turn import Turn
from runtime.wire.messages import MAX_HISTORY_MESSAGES, ChatPrompt, SamplingChange, Start

# Far above any prompt budget (the default history is some 12,000 characters), and the size of the largest frame:
# what lies beyond could never be seen by a model, so it need not be kept.
HISTORY_MAX_CHARS = defaults.MESSAGE_BYTES
HISTORY_MAX_MESSAGES = MAX_HISTORY_MESSAGES


class History:
    """The conversation so far, oldest first, bounded by dropping the oldest. Appending takes constant time."""

    __slots__ = ("_chars", "_messages")

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self._messages: deque[Message] = deque()
        self._chars = 0
        self.extend(messages)

    def extend(self, messages: Iterable[Message]) -> None:
        """Append messages."""
        for message in messages:
            self._messages.append(message)
            self._chars += len(message.content)
        while self._chars > HISTORY_MAX_CHARS or len(self._messages) > HISTORY_MAX_MESSAGES:
            self._chars -= len(self._messages.popleft().content)

    def remove(self, message: Message) -> None:
        """Take back a message that was appended last, unless it has been dropped."""
        if self._messages and self._messages[-1] is message:
            self._chars -= len(self._messages.pop().content)

    def messages(self) -> tuple[Message, ...]:
        """A snapshot that later turns do not change."""
        return tuple(self._messages)


class Session:
    """One conversation's state.

    Attributes:
        session_id: the client's name for it.
        persona: the system prompt; empty is none.
        gender: what the client said last; only shown in the ack.
        personality: what the client said last; only shown in the ack.
        user_identity: what the client said last; only shown in the ack.
        runtime_text: follows the persona in the prompt; the last `start`'s own.
        history: what was said so far.
        sampling: how replies are drawn unless a message says otherwise.
        sanitize: whether replies are made fit to be spoken.
        check_screen_prefix: precedes the utterance after a tool decision yes.
        screen_checked_prefix: precedes the analysis of a followup.
        updates: limits changes of the persona.
        owner: the message handler whose connection has it; none between connections.
        turn: the one that runs; none between turns.
        last_reply: what `heard` may still cut; none before a turn has ended, and once the next one has begun.
        lock: held from stopping the old turn to starting the new one, so that two connections cannot interleave.
        last_used: the store's time of the last touch.
    """

    def __init__(self, session_id: str, sampling: Sampling, prefixes: tuple[str, str], updates: SlidingWindow) -> None:
        self.session_id = session_id
        self.persona = ""
        self.gender: str | None = None
        self.personality: str | None = None
        self.user_identity: str | None = None
        self.runtime_text = ""
        self.history = History()
        self.sampling = sampling
        self.sanitize = True
        self.check_screen_prefix, self.screen_checked_prefix = prefixes
        self.updates = updates
        self.owner: object | None = None
        self.turn: Turn | None = None
        self.last_reply: LastReply | None = None
        self._reply: Message | None = None  # what the history has of it
        self.lock = asyncio.Lock()
        self.last_used = 0.0

    def apply(self, start: Start) -> None:
        """Take over what a `start` says; what it leaves out stays, but for `runtime_text`, which is the turn's own."""
        if start.persona is not None:
            self.persona = start.persona
        if start.history is not None:
            self.history = History(start.history)
        self.gender = start.gender or self.gender
        self.personality = start.personality or self.personality
        self.user_identity = start.user_identity or self.user_identity
        self.runtime_text = start.runtime_text
        self.sampling, self.sanitize = self.sampling_with(start.sampling)
        if start.check_screen_prefix is not None:
            self.check_screen_prefix = start.check_screen_prefix
        if start.screen_checked_prefix is not None:
            self.screen_checked_prefix = start.screen_checked_prefix

    def sampling_with(self, change: SamplingChange) -> tuple[Sampling, bool]:
        """The session's sampling and sanitizing with a message's changes."""
        named: dict[str, Any] = {k: int(value) if k == "top_k" else value for k, value in change.values.items()}
        extra = {"max_tokens": change.max_tokens, "stop": change.stop, "seed": change.seed}
        named |= {name: value for name, value in extra.items() if value is not None}
        sampling = replace(self.sampling, **named) if named else self.sampling
        return sampling, self.sanitize if change.sanitize is None else change.sanitize

    def has_persona(self, update: ChatPrompt) -> bool:
        """Whether an update would change nothing."""
        return (
            update.persona == self.persona
            and (update.gender or self.gender) == self.gender
            and (update.personality or self.personality) == self.personality
        )

    def set_persona(self, update: ChatPrompt) -> None:
        """Replace the persona from the next turn on; the history stays."""
        self.persona = update.persona
        self.gender = update.gender or self.gender
        self.personality = update.personality or self.personality

    def forget(self, turn: Turn) -> None:
        """Let go of a turn that has ended: sessions are kept for long, and a turn holds its connection's queue."""
        if self.turn is turn:
            self.turn = None

    def begin(self, turn: Turn) -> None:
        """Let a turn run; nothing that was said before can be cut any more."""
        self.turn, self.last_reply, self._reply = turn, None, None

    def remember(self, turn: Turn, utterance: str, *, kept: bool) -> None:
        """Take over an ended turn: where it is kept, the user's words and the reply, each where there is any."""
        self.last_reply = LastReply(turn.request_id, turn.said, kept)
        if kept and utterance.strip():
            self.history.extend((Message("user", utterance),))
        self.cut(len(turn.said) if turn.heard is None else turn.heard)

    def cut(self, chars: int) -> None:
        """Keep so many characters of the last reply: the others were not heard."""
        last = self.last_reply
        if last is None or not last.kept:
            return
        if self._reply is not None:
            self.history.remove(self._reply)
        heard = Message("assistant", last.said[:chars])
        self._reply = heard if heard.content.strip() else None
        if self._reply is not None:
            self.history.extend((self._reply,))


class SessionStore:
    """All sessions: found by principal and id, dropped when idle for too long or, beyond the maximum, oldest first."""

    def __init__(
        self,
        create: Callable[[str], Session],
        *,
        idle_ttl: float,
        maximum: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._create = create
        self._idle_ttl = idle_ttl
        self._maximum = maximum
        self._clock = clock
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, principal: str, session_id: str) -> Session | None:
        """Find a session that is still kept."""
        session = self._sessions.get((principal, session_id))
        if session is None or self._expired(session):
            return None
        self._touch((principal, session_id), session)
        return session

    def open(self, principal: str, session_id: str) -> Session:
        """Find a session, or make it when there is none."""
        session = self.find(principal, session_id)
        if session is None:
            session = self._create(session_id)
            self._sessions[principal, session_id] = session
            self._touch((principal, session_id), session)
            self._shrink()
        return session

    def release(self, session: Session, owner: object) -> None:
        """Take the owner from a session; its idle time begins."""
        if session.owner is owner:
            session.owner = None
            session.last_used = self._clock()

    def expire(self) -> int:
        """Drop what has been idle for too long; return how many that were."""
        expired = [key for key, session in self._sessions.items() if self._expired(session)]
        for key in expired:
            del self._sessions[key]
        return len(expired)

    def _touch(self, key: tuple[str, str], session: Session) -> None:
        session.last_used = self._clock()
        self._sessions.move_to_end(key)

    def _expired(self, session: Session) -> bool:
        return session.owner is None and self._clock() - session.last_used > self._idle_ttl

    def _shrink(self) -> None:
        if len(self._sessions) <= self._maximum:
            return
        # The newest is the one being opened; those with an owner are in use, and as few as there are connections.
        newest = next(reversed(self._sessions))
        for key, session in self._sessions.items():
            if session.owner is None and key != newest:
                del self._sessions[key]
                return
