"""What a session holds is what it counts, whatever a client has sent: whoever counts less can be filled unseen."""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Iterable, Mapping
from sys import getsizeof
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from runtime.engines import Sampling
from runtime.host.ratelimit import SlidingWindow
from runtime.text.prompt import Message
from runtime.turns.sessions.history import HISTORY_MAX_BYTES
from runtime.turns.sessions.lease import Lease
from runtime.turns.sessions.session import Session
from runtime.turns.stores.record import TURN_IDS, StoredTurn
from runtime.turns.turn import Turn
from runtime.wire import messages
from tests.harness.scripted import Running, ScriptedEngine, serving

# What is not the session's own: who uses it, and what runs in it.
OTHERS = (Turn, SimpleNamespace, asyncio.Lock, type, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
LONG = "🦭" + "a " * 20_000


def parts_of(thing: Any) -> Iterable[Any]:
    if isinstance(thing, Mapping):
        return [*thing.keys(), *thing.values()]
    if isinstance(thing, (tuple, list, deque, set, frozenset)):
        return list(thing)
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    fields = thing.__struct_fields__ if isinstance(thing, msgspec.Struct) else slots
    return [*getattr(thing, "__dict__", {}).values(), *(getattr(thing, name, None) for name in fields)]


def held(thing: Any, seen: dict[int, Any] | None = None) -> int:
    """Bytes of everything that a thing leads to."""
    seen = {} if seen is None else seen
    if thing is None or id(thing) in seen or isinstance(thing, OTHERS):
        return 0
    seen[id(thing)] = thing
    size = getsizeof(thing) + getsizeof(getattr(thing, "__dict__", None) or 0)
    if isinstance(thing, (str, bytes, int, float)):
        return size
    return size + sum(held(part, seen) for part in parts_of(thing))


def assert_counted(session: Session) -> None:
    held_ = held(session)
    assert held_ <= session.size, "it holds more than it counts"
    assert session.size <= 3 * held_ + 16_384, "it counts more than it holds"


def test_what_is_held_is_found_however_it_is_held() -> None:
    for thing in (LONG, [LONG], {LONG: 1}, {"a": (LONG,)}, Message("user", LONG), StoredTurn("i", LONG)):
        assert getsizeof(LONG) < held(thing) + 1 < getsizeof(LONG) + 2_000


TEXTS = st.tuples(st.sampled_from(["", "x", "é", "→", "🦭"]), st.sampled_from([1, 100, 5_000, 70_000, 300_000])).map(
    lambda pair: pair[0] * pair[1]
)
SHORT = st.sampled_from(["", "a", "→" * 20, "🦭" * 30])


class Held(RuleBasedStateMachine):
    """One session, and all that its clients can do to it."""

    session: Session
    turn: Any = None

    @initialize(session_id=st.sampled_from(["s", "🦭" * 256]), kept_elsewhere=st.booleans())
    def begin(self, session_id: str, kept_elsewhere: bool) -> None:
        self.session = Session(session_id, Sampling(), ("", ""), SlidingWindow(4, 60))
        if kept_elsewhere:
            self.session.lease = Lease("p" * 64, Sampling())

    @rule(
        persona=st.none() | TEXTS,
        runtime_text=TEXTS,
        history=st.none() | st.lists(TEXTS, max_size=4),
        words=SHORT,
        stop=st.none() | st.lists(st.just("🦭" * 64), max_size=4),
    )
    def apply(
        self, persona: str | None, runtime_text: str, history: list[str] | None, words: str, stop: list[str] | None
    ) -> None:
        said = None if history is None else tuple(Message("user", text) for text in history)
        change = messages.SamplingChange(stop=None if stop is None else tuple(stop))
        start = messages.Start(
            session_id="s",
            persona=persona,
            runtime_text=runtime_text,
            history=said,
            personality=words[:20],
            check_screen_prefix=words,
            screen_checked_prefix=words[::-1],
            sampling=change,
        )
        self.session.preview(start)
        self.session.apply(start)

    @rule(persona=TEXTS)
    def update(self, persona: str) -> None:
        self.session.updates.take()
        self.session.set_persona(messages.ChatPrompt(persona=persona))

    @rule(words=TEXTS, request_id=st.sampled_from([None, 1, "🦭" * 256]))
    def start(self, words: str, request_id: Any) -> None:
        self.end("", kept=False, heard=None)
        self.turn = SimpleNamespace(
            request_id=request_id, said="", heard=None, words=words, ended=False, leaves_words=True
        )
        self.session.begin(cast("Turn", self.turn), words)

    @rule(said=TEXTS, kept=st.booleans(), heard=st.sampled_from([None, 0, 50]))
    def end(self, said: str, kept: bool, heard: int | None) -> None:
        turn, self.turn = self.turn, None
        if turn is not None:
            turn.said, turn.heard = said, heard
            self.session.remember(turn, turn.words, kept=kept)
            self.session.forget(turn)

    @rule(turns=st.integers(1, TURN_IDS + 5))
    def talk(self, turns: int) -> None:
        for _ in range(turns):
            self.start("hi", None)
            self.end("ho", kept=True, heard=None)

    @rule(chars=st.sampled_from([0, 1, 50, 10_000]))
    def cut(self, chars: int) -> None:
        self.session.cut(chars)

    @invariant()
    def what_is_held_is_counted(self) -> None:
        assert_counted(self.session)

    @invariant()
    def between_turns_little_is_kept_of_them(self) -> None:
        if self.turn is None:
            assert not self.session.utterance
            ended = self.session.lease.ended if self.session.lease is not None else []
            assert sum(getsizeof(turn.utterance) for turn in ended) <= HISTORY_MAX_BYTES


TestHeld = Held.TestCase
TestHeld.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@given(TEXTS)
def test_a_turn_that_failed_leaves_nothing_of_its_words(words: str) -> None:
    session = Session("s", Sampling(), ("", ""), SlidingWindow(4, 60))
    before, turn = session.size, cast("Turn", SimpleNamespace(request_id=None, said="", heard=None))
    session.begin(turn, words)
    assert session.size >= before + getsizeof(words) - getsizeof("")
    session.forget(turn)
    assert session.size == before


KINDS: dict[str, dict[str, Any]] = {
    "start": {"user_utterance": LONG},
    "start with a history": {"type": "start", "history": [{"role": "user", "content": LONG}] * 3},
    "start with a transcript": {"type": "start", "history_text": f"User: {LONG}"},
    "start with runtime text": {"type": "start", "runtime_text": LONG[:2_000]},
    "start with stops": {"type": "start", "sampling": {"stop": ["🦭" * 64] * 4}},
    "start with prefixes": {"type": "start", "check_screen_prefix": "🦭" * 30, "screen_checked_prefix": "🦭" * 30},
    "start with a name": {"type": "start", "request_id": "🦭" * 256, "personality": "a" * 20},
    "followup": {"analysis_text": LONG},
    "chat_prompt": {"persona_text": LONG[:2_000]},
    "prepare": {"user_utterance": LONG},
    "warm_persona": {"persona_text": LONG[:2_000]},
    "warm_history": {"history": [{"role": "user", "content": LONG}]},
    "heard": {"chars": 1},
    "cancel": {"request_id": "🦭" * 256},
}


def sessions_of(running: Running) -> list[Session]:
    registry = running.service.sessions
    return [session for account in registry._accounts.values() for session in account.sessions.values()]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_message_leaves_in_a_session_is_counted(kind: str) -> None:
    message = {"type": kind, "session_id": "s1", **KINDS[kind]}
    async with serving(ScriptedEngine(reply=["word "] * 50)) as running, running.client() as client:
        await client.turn(user_utterance="hi")
        for _ in range(3):
            await client.send(**message)
            if message["type"] in ("start", "followup"):
                await client.until("done")
            await client.send(type="ping")
            await client.until("pong")
            (session,) = sessions_of(running)
            if session.turn is None:
                assert_counted(session)
                assert not session.utterance
                assert running.service.sessions.bytes == session.size
