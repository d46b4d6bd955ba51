"""One session: what is kept between turns of one conversation.

One connection owns it at a time; the last `start` wins. What is bounded is bounded in bytes of this process's memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from sys import getsizeof

from runtime.engines import Sampling
from runtime.host.ratelimit import SlidingWindow
from runtime.text.prompt import Message
from runtime.turns.sampling import changed
from runtime.turns.sessions.heard import LastReply
from runtime.turns.sessions.history import History
from runtime.turns.sessions.lease import Lease
from runtime.turns.turn import Turn
from runtime.wire.messages import ChatPrompt, SamplingChange, Start

# As measured, and a little more: a session without texts.
SESSION_OVERHEAD_BYTES = 4_096
# Of a session that nobody will update.
NO_LIMIT = SlidingWindow(0, 1.0)


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
        changed_hands: called when it has another owner; the registry knows which sessions nobody has.
        turn: the one that runs; none between turns.
        utterance: the user's words in the turn that runs; empty between turns.
        last_reply: what `heard` may still cut; none before a turn has ended, and once the next one has begun.
        reply: what the history has of it; its last message.
        lease: what its server knows of it in the store; none where sessions are kept in memory alone.
        lock: held from stopping the old turn to starting the new one, so that two connections cannot interleave.
        last_used: the registry's time of the last touch.
        resized: called when its texts have changed; the registry counts their bytes.
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
        self._owner: object | None = None  # the message handler whose connection has it
        self.changed_hands: Callable[[], None] = _nothing
        self.turn: Turn | None = None
        self.utterance = ""
        self.last_reply: LastReply | None = None
        self.reply: Message | None = None
        self.lease: Lease | None = None
        self.lock = asyncio.Lock()
        self.last_used = 0.0
        self.resized: Callable[[], None] = _nothing

    @property
    def owner(self) -> object | None:
        """Who has it; none between connections."""
        return self._owner

    @owner.setter
    def owner(self, owner: object | None) -> None:
        """Give it to somebody, or to nobody."""
        self._owner = owner
        self.changed_hands()

    @property
    def size(self) -> int:
        """Bytes of memory that its texts take, and it itself."""
        texts = [
            self.session_id,
            self.persona,
            self.runtime_text,
            self.gender,
            self.personality,
            self.user_identity,
            self.check_screen_prefix,
            self.screen_checked_prefix,
            self.utterance,
            *(self.sampling.stop or ()),
        ]
        if self.last_reply is not None:
            texts += self.last_reply.said, str(self.last_reply.request_id or "")
        overhead = SESSION_OVERHEAD_BYTES
        if self.lease is not None:
            overhead += self.lease.overhead
            # The turn that runs is in the lease as well.
            texts += [text for text in self.lease.texts if text is not self.utterance]
        return overhead + self.history.size + sum(getsizeof(text) for text in texts if text)

    @property
    def lost(self) -> bool:
        """Whether another server has taken it over."""
        return self.lease is not None and self.lease.lost

    def apply(self, start: Start) -> None:
        """Take over what a `start` says; what it leaves out stays, but for `runtime_text`, which is the turn's own."""
        before = self._kept()
        if start.persona is not None:
            self.persona = start.persona
        if start.history is not None:
            self.history = History(start.history)
            if self.lease is not None:
                self.lease.replace_history()
        self.gender = start.gender or self.gender
        self.personality = start.personality or self.personality
        self.user_identity = start.user_identity or self.user_identity
        self.runtime_text = start.runtime_text
        self.sampling, self.sanitize = self.sampling_with(start.sampling)
        if start.check_screen_prefix is not None:
            self.check_screen_prefix = start.check_screen_prefix
        if start.screen_checked_prefix is not None:
            self.screen_checked_prefix = start.screen_checked_prefix
        news = start.history is not None or self._kept() != before
        if news or self.lease is None:
            self._changed(news=news)
        else:  # the turn that begins now is told of, and is not worth a write yet
            self.lease.touched = True

    def preview(self, start: Start) -> Session:
        """The session as a turn would see it that a `start` began at this moment. This one stays as it is.

        A turn that runs would be interrupted: what was said in it is in the history, as `remember` would have it.
        """
        seen = Session(self.session_id, self.sampling, (self.check_screen_prefix, self.screen_checked_prefix), NO_LIMIT)
        seen.persona, seen.sanitize = self.persona, self.sanitize
        if start.history is None:
            seen.history = History((*self.history.messages(), *self._interrupted()))
        seen.apply(start)
        return seen

    def _interrupted(self) -> tuple[Message, ...]:
        """What the history would get of the turn that runs, were it interrupted now."""
        turn = self.turn
        if turn is None or turn.ended or not turn.leaves_words:
            return ()
        said = (("user", self.utterance), ("assistant", turn.said[: turn.heard]))
        return tuple(Message(role, content) for role, content in said if content.strip())

    def sampling_with(self, change: SamplingChange) -> tuple[Sampling, bool]:
        """The session's sampling and sanitizing with a message's changes."""
        sampling = changed(self.sampling, change)
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
        self._changed()

    def forget(self, turn: Turn) -> None:
        """Let go of a turn that has ended: sessions are kept for long, and a turn holds its connection's queue."""
        if self.turn is turn:
            self.turn, self.utterance = None, ""

    def begin(self, turn: Turn, utterance: str = "") -> None:
        """Let a turn run; nothing that was said before can be cut any more."""
        self.turn, self.last_reply, self.reply = turn, None, None
        self.utterance = utterance
        if self.lease is not None:
            self.lease.begin(utterance)
        self._changed(news=False)

    def remember(self, turn: Turn, utterance: str, *, kept: bool) -> None:
        """Take over an ended turn: where it is kept, the user's words and the reply, each where there is any."""
        self.last_reply = LastReply(turn.request_id, turn.said, kept)
        if self.turn is turn:
            self.utterance = ""  # the history has it
        if kept and utterance.strip():
            self.history.extend((Message("user", utterance),))
        if self.lease is not None:
            self.lease.end(utterance, kept=kept)
        self.cut(len(turn.said) if turn.heard is None else turn.heard)

    def cut(self, chars: int) -> None:
        """Keep so many characters of the last reply: the others were not heard."""
        last = self.last_reply
        if last is not None and last.kept:
            if self.reply is not None:
                self.history.remove(self.reply)
            heard = Message("assistant", last.said[:chars])
            self.reply = heard if heard.content.strip() else None
            if self.reply is not None:
                self.history.extend((self.reply,))
            if self.lease is not None:
                self.lease.hear(self.reply.content if self.reply is not None else "")
        self._changed()

    def _kept(self) -> tuple[object, ...]:
        """What stays from one `start` to the next, but for the history."""
        return (
            self.persona,
            self.gender,
            self.personality,
            self.user_identity,
            self.sampling,
            self.sanitize,
            self.check_screen_prefix,
            self.screen_checked_prefix,
        )

    def _changed(self, *, news: bool = True) -> None:
        """Have others note a change; `news` is worth to be written by itself."""
        if self.lease is not None:
            self.lease.touched = True
            self.lease.news = self.lease.news or news
        self.resized()


def _nothing() -> None:
    pass
