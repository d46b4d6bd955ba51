"""Sessions: what is kept between turns, and for how long.

A session belongs to (principal, `session_id`): one client's key can never see another's sessions, nor drop them. It
outlives its connection by the idle time, so that a client may reconnect. One connection owns it at a time; the last
`start` wins. What is bounded is bounded in bytes of this process's memory.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from sys import getsizeof
from typing import Any

from runtime import defaults
from runtime.engines import Sampling
from runtime.host.ratelimit import SlidingWindow
from runtime.text.prompt import Message
from runtime.turns.heard import LastReply
from runtime.turns.principal import Principal
from runtime.turns.turn import Turn
from runtime.wire.messages import MAX_HISTORY_MESSAGES, ChatPrompt, SamplingChange, Start

# Far above any prompt budget (the default history is some 12,000 characters): what lies beyond could never be seen by
# a model, so it need not be kept. Memory, because one emoji makes Python keep four bytes for each character of a text.
HISTORY_MAX_BYTES = defaults.MESSAGE_BYTES
HISTORY_MAX_MESSAGES = MAX_HISTORY_MESSAGES
# As measured, and a little more: a `Message` and its place in the history, without the text; a session without texts.
MESSAGE_OVERHEAD_BYTES = 72
SESSION_OVERHEAD_BYTES = 4_096


class History:
    """The conversation so far, oldest first, bounded by dropping the oldest. Appending takes constant time."""

    __slots__ = ("_messages", "_size")

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self._messages: deque[Message] = deque()
        self._size = 0
        self.extend(messages)

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return self._size

    def extend(self, messages: Iterable[Message]) -> None:
        """Append messages."""
        for message in messages:
            self._messages.append(message)
            self._size += message_size(message)
        while self._size > HISTORY_MAX_BYTES or len(self._messages) > HISTORY_MAX_MESSAGES:
            self._size -= message_size(self._messages.popleft())

    def remove(self, message: Message) -> None:
        """Take back a message that was appended last, unless it has been dropped."""
        if self._messages and self._messages[-1] is message:
            self._size -= message_size(self._messages.pop())

    def messages(self) -> tuple[Message, ...]:
        """A snapshot that later turns do not change."""
        return tuple(self._messages)


def message_size(message: Message) -> int:
    """Bytes of memory that a message takes."""
    return getsizeof(message.content) + MESSAGE_OVERHEAD_BYTES


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
        resized: called when its texts have changed; the store counts their bytes.
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
        self.resized: Callable[[], None] = _nothing

    @property
    def size(self) -> int:
        """Bytes of memory that its texts take, and it itself."""
        texts = (
            self.session_id,
            self.persona,
            self.runtime_text,
            self.gender,
            self.personality,
            self.user_identity,
            self.check_screen_prefix,
            self.screen_checked_prefix,
            self.last_reply.said if self.last_reply is not None else "",
        )
        return SESSION_OVERHEAD_BYTES + self.history.size + sum(getsizeof(text) for text in texts if text)

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
        self.resized()

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
        self.resized()

    def forget(self, turn: Turn) -> None:
        """Let go of a turn that has ended: sessions are kept for long, and a turn holds its connection's queue."""
        if self.turn is turn:
            self.turn = None

    def begin(self, turn: Turn) -> None:
        """Let a turn run; nothing that was said before can be cut any more."""
        self.turn, self.last_reply, self._reply = turn, None, None
        self.resized()

    def remember(self, turn: Turn, utterance: str, *, kept: bool) -> None:
        """Take over an ended turn: where it is kept, the user's words and the reply, each where there is any."""
        self.last_reply = LastReply(turn.request_id, turn.said, kept)
        if kept and utterance.strip():
            self.history.extend((Message("user", utterance),))
        self.cut(len(turn.said) if turn.heard is None else turn.heard)

    def cut(self, chars: int) -> None:
        """Keep so many characters of the last reply: the others were not heard."""
        last = self.last_reply
        if last is not None and last.kept:
            if self._reply is not None:
                self.history.remove(self._reply)
            heard = Message("assistant", last.said[:chars])
            self._reply = heard if heard.content.strip() else None
            if self._reply is not None:
                self.history.extend((self._reply,))
        self.resized()


class SessionQuotaError(Exception):
    """A principal has as many sessions as it may have, and all of them are in use."""


@dataclass(slots=True)
class _Account:
    """What is kept of one principal: its sessions, the least used first, and the bytes of each and of all."""

    sessions: OrderedDict[str, Session] = field(default_factory=OrderedDict)
    sizes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0


class SessionStore:
    """All sessions: found by principal and id, dropped when idle for too long or when their principal's quota is full.

    A principal that wants more than its quota loses those of its own sessions that were not used for longest, and never
    another's.

    Args:
        create: makes a session of an id.
        idle_ttl: seconds that a session without a connection is kept.
        maximum: sessions of all principals.
        max_bytes: memory of all sessions.
        clock: seconds.
    """

    def __init__(
        self,
        create: Callable[[str], Session],
        *,
        idle_ttl: float,
        maximum: int,
        max_bytes: int = defaults.SESSION_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._create = create
        self._idle_ttl = idle_ttl
        self._maximum = maximum
        self._max_bytes = max_bytes
        self._most, self._most_bytes = maximum, max_bytes  # of one principal
        self._clock = clock
        self._accounts: dict[Principal, _Account] = {}  # none without a session
        self._count = 0  # of all accounts
        self._bytes = 0  # of all accounts

    def __len__(self) -> int:
        return self._count

    @property
    def bytes(self) -> int:
        """Memory of all sessions' texts."""
        return self._bytes

    def set_quota(self, sessions: int, bytes_: int) -> None:
        """Set what each principal may have; what is above goes at once, as far as it has no connection."""
        self._most, self._most_bytes = min(sessions, self._maximum), min(bytes_, self._max_bytes)
        for principal in list(self._accounts):
            self._shrink(principal)

    def kept(self, principal: Principal) -> tuple[int, int]:
        """Sessions of one principal, and their bytes."""
        account = self._accounts.get(principal)
        return (len(account.sessions), account.bytes) if account is not None else (0, 0)

    def find(self, principal: Principal, session_id: str) -> Session | None:
        """Find a session that is still kept."""
        account = self._accounts.get(principal)
        session = account.sessions.get(session_id) if account is not None else None
        if account is None or session is None or self._expired(session):
            return None
        session.last_used = self._clock()
        account.sessions.move_to_end(session_id)
        self._measure(account, session)
        return session

    def open(self, principal: Principal, session_id: str, owner: object | None = None) -> Session:
        """Find a session, or make it when there is none.

        Args:
            principal: whose it is.
            session_id: the client's name for it.
            owner: who will have it; what it had until now may go to make room.

        Raises:
            SessionQuotaError: there is no room, and nothing of the principal's own that could go.
        """
        session = self.find(principal, session_id)
        if session is not None:
            return session
        account = self._accounts.setdefault(principal, _Account())
        self._drop(principal, account, session_id)  # what has expired and was not dropped yet
        if not self._make_room(principal, owner):
            principal.refused += 1
            raise SessionQuotaError
        account = self._accounts.setdefault(principal, _Account())
        session = self._create(session_id)
        session.last_used = self._clock()
        account.sessions[session_id] = session
        self._count += 1
        self._measure(account, session)
        session.resized = lambda: self._resized(principal, session)
        return session

    def release(self, session: Session, owner: object) -> None:
        """Take the owner from a session; its idle time begins."""
        if session.owner is owner:
            session.owner = None
            session.last_used = self._clock()
            session.resized()  # what is not in use any more may have to go

    def expire(self) -> int:
        """Drop what has been idle for too long; return how many that were."""
        before = self._count
        for principal, account in list(self._accounts.items()):
            for session_id in [name for name, session in account.sessions.items() if self._expired(session)]:
                self._drop(principal, account, session_id)
        return before - self._count

    def forget(self, principal: Principal) -> None:
        """Drop all sessions of a principal that is gone."""
        account = self._accounts.get(principal)
        for session_id in list(account.sessions) if account is not None else ():
            self._drop(principal, self._accounts[principal], session_id)

    def _expired(self, session: Session) -> bool:
        return session.owner is None and self._clock() - session.last_used > self._idle_ttl

    def _make_room(self, principal: Principal, owner: object | None) -> bool:
        """Drop as much of a principal's own as one more session needs; false when there is not enough that may go."""
        account = self._accounts.get(principal)
        if self._count >= self._maximum:
            self.expire()  # what nobody can find any more takes no one's place
            account = self._accounts.get(principal)
        while account is not None and (
            len(account.sessions) >= self._most
            or self._count >= self._maximum
            or self._over_bytes(account, more=SESSION_OVERHEAD_BYTES)
        ):
            if not self._drop_oldest(principal, account, owner):
                return False
            account = self._accounts.get(principal)
        return self._count < self._maximum

    def _shrink(self, principal: Principal) -> None:
        """Drop a principal's own sessions until it keeps to its quota, or what is left has a connection."""
        while (account := self._accounts.get(principal)) is not None and (
            len(account.sessions) > self._most or self._over_bytes(account)
        ):
            if not self._drop_oldest(principal, account, None):
                return

    def _over_bytes(self, account: _Account, more: int = 0) -> bool:
        """Whether a principal is over its quota, or, where quotas add up to more than all, takes from the others."""
        takes = account.bytes + more
        most = self._max_bytes // len(self._accounts) if self._bytes + more > self._max_bytes else self._most_bytes
        return takes > min(most, self._most_bytes)

    def _drop_oldest(self, principal: Principal, account: _Account, owner: object | None) -> bool:
        for session_id, session in account.sessions.items():
            if session.owner is None or session.owner is owner:
                self._drop(principal, account, session_id)
                return True
        return False

    def _drop(self, principal: Principal, account: _Account, session_id: str) -> None:
        session = account.sessions.pop(session_id, None)
        if session is not None:
            session.resized = _nothing
            size = account.sizes.pop(session_id)
            account.bytes -= size
            self._bytes -= size
            self._count -= 1
        if not account.sessions:
            self._accounts.pop(principal, None)

    def _resized(self, principal: Principal, session: Session) -> None:
        """Count a session's bytes anew; when they are too many, others of its principal's go."""
        self._measure(self._accounts[principal], session)
        self._shrink(principal)

    def _measure(self, account: _Account, session: Session) -> None:
        size = session.size
        grown = size - account.sizes.get(session.session_id, 0)
        account.sizes[session.session_id] = size
        account.bytes += grown
        self._bytes += grown


def _nothing() -> None:
    pass
