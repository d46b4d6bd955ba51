"""What is kept of sessions: for how long, how much of it, and whose goes when there is no room."""

from __future__ import annotations

from collections.abc import Callable
from sys import getsizeof
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.engines import Sampling
from runtime.host.ratelimit import SlidingWindow
from runtime.text.prompt import Message
from runtime.turns.principal import Principal
from runtime.turns.sessions.history import HISTORY_MAX_BYTES, HISTORY_MAX_MESSAGES, History, message_size
from runtime.turns.sessions.registry import SessionQuotaError, SessionRegistry
from runtime.turns.sessions.session import SESSION_OVERHEAD_BYTES, Session
from runtime.turns.turn import Turn
from runtime.wire.messages import ChatPrompt, Start
from tests.harness.clock import Clock
from tests.harness.scripted import serving

K = Principal("k")


def session_of(session_id: str) -> Session:
    return Session(session_id, Sampling(), ("", ""), SlidingWindow(4, 60))


def store(
    clock: Callable[[], float], *, ttl: float = 10, maximum: int = 3, max_bytes: int = 1 << 30
) -> SessionRegistry:
    return SessionRegistry(session_of, idle_ttl=ttl, maximum=maximum, max_bytes=max_bytes, clock=clock)


def start(persona: str, history: tuple[Message, ...]) -> Start:
    return Start(session_id="s", persona=persona, history=history)


def ended(said: str) -> Turn:
    """A turn that has ended, as far as a session sees one."""
    return cast("Turn", SimpleNamespace(request_id=None, said=said, heard=None))


def test_a_session_is_kept_for_its_idle_time_after_its_owner_left() -> None:
    clock = Clock()
    sessions = store(clock)
    session = sessions.open(K, "s")
    session.owner = self = object()
    clock.now = 100
    assert sessions.expire() == 0
    assert sessions.find(K, "s") is session
    sessions.release(session, object())
    assert session.owner is self
    sessions.release(session, self)
    clock.now = 110
    assert sessions.expire() == 0
    clock.now = 110.1
    assert sessions.find(K, "s") is None
    assert sessions.open(K, "s") is not session
    clock.now = 200
    assert sessions.expire() == 1
    assert len(sessions) == 0


def test_beyond_the_maximum_the_least_used_without_an_owner_goes() -> None:
    sessions = store(Clock())
    kept = sessions.open(K, "owned")
    kept.owner = object()
    for name in ("a", "b"):
        sessions.open(K, name)
    sessions.find(K, "a")
    sessions.open(K, "c")
    assert sessions.find(K, "b") is None
    assert all(sessions.find(K, name) is not None for name in ("owned", "a", "c"))


def test_when_all_are_in_use_there_is_no_room_but_for_whoever_leaves_its_own() -> None:
    sessions = store(Clock(), maximum=1)
    owner = object()
    sessions.open(K, "a").owner = owner
    with pytest.raises(SessionQuotaError):
        sessions.open(K, "b")
    assert sessions.open(K, "b", owner).session_id == "b"
    assert sessions.find(K, "a") is None
    assert K.refused == 1


def test_what_has_expired_takes_nobodys_place() -> None:
    clock = Clock()
    sessions = store(clock, maximum=2)
    other = Principal("other")
    sessions.open(other, "old")
    sessions.open(other, "older")
    clock.now = 11
    assert sessions.open(K, "new")
    assert len(sessions) == 1


def test_a_smaller_quota_takes_effect_at_once() -> None:
    sessions = store(Clock(), maximum=10)
    for name in "abcd":
        sessions.open(K, name)
    sessions.set_quota(2, 1 << 30)
    assert [sessions.find(K, name) is not None for name in "abcd"] == [False, False, True, True]


@pytest.mark.parametrize("keys", [1, 3, 999])
def test_a_session_more_costs_the_same_where_there_is_no_room_left(keys: int) -> None:
    """Whoever fills the last place must not make each new session a walk through all of them."""
    clock = Clock()
    sessions = store(clock, maximum=1998)
    holders = [Principal(str(number)) for number in range(keys)]
    sessions.set_quota(1998 // keys, 1 << 30)
    owned = 900 if keys == 1 else 140
    for number in range(2100):
        if number < owned:
            sessions.open(holders[number % keys], f"owned {number}").owner = clock
        else:
            sessions.open(holders[number % keys], f"{number}")
    before = clock.asked
    for number in range(200):
        clock.now += 0.01
        assert sessions.open(holders[number % keys], f"new {number}")
    assert (clock.asked - before) / 200 < 5


def test_a_conversation_that_has_just_ended_goes_after_those_before_it() -> None:
    clock = Clock()
    sessions = store(clock, maximum=2)
    long = sessions.open(K, "long")
    long.owner = client = object()
    clock.now = 1
    sessions.open(K, "short")
    clock.now = 2
    sessions.release(long, client)
    sessions.open(K, "new")
    assert sessions.find(K, "short") is None
    assert sessions.find(K, "long") is long


MESSAGES = st.lists(st.tuples(st.sampled_from(["x", "ß", "→", "🦭"]), st.integers(0, 400)), max_size=6)
SHARE, KEYS = 60_000, 3


class Store(RuleBasedStateMachine):
    """Three principals on one store, whose quotas add up to all there is."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = store(self.clock, maximum=KEYS * 4, max_bytes=KEYS * SHARE)
        self.store.set_quota(4, SHARE)
        self.keys = [Principal(str(number)) for number in range(KEYS)]
        self.known: dict[tuple[int, str], Session] = {}  # what the store keeps
        self.orphans: list[Session] = []  # what it keeps no more, and a turn may still hold

    def look(self, by: int | None) -> None:
        """See what went; nothing of anybody but `by` may have, unless it had expired."""
        for (who, name), session in list(self.known.items()):
            account = self.store._accounts.get(self.keys[who])
            if account is None or account.sessions.get(name) is not session:
                del self.known[who, name]
                self.orphans.append(session)
                expired = session.owner is None and self.clock.now - session.last_used > 10
                assert expired or (who == by and session.owner is None)

    @rule(who=st.integers(0, KEYS - 1), name=st.sampled_from("abcdef"))
    def open(self, who: int, name: str) -> None:
        mine = [session for (of, _), session in self.known.items() if of == who]
        try:
            session = self.store.open(self.keys[who], name)
        except SessionQuotaError:
            assert mine
            assert all(session.owner is not None for session in mine)
            self.look(who)
            return
        self.look(who)
        self.known[who, name] = session

    @precondition(lambda self: self.known)
    @rule(data=st.data(), messages=MESSAGES, persona=st.integers(0, 30_000), way=st.sampled_from("apr"))
    def grow(self, data: st.DataObject, messages: list[tuple[str, int]], persona: int, way: str) -> None:
        who, name = data.draw(st.sampled_from(sorted(self.known)))
        session = self.known[who, name]
        if way == "a":
            history = tuple(Message("user", character * length) for character, length in messages)
            session.apply(start("p" * persona, history))
        elif way == "p":
            session.set_persona(ChatPrompt(persona="q" * persona))
        else:
            for number, (character, length) in enumerate(messages):
                session.remember(ended(character * length), "hi", kept=number % 3 < 2)
                session.cut(number)
        self.look(who)

    @precondition(lambda self: self.orphans)
    @rule(data=st.data())
    def an_orphan_grows(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.orphans)).remember(ended("x" * 1000), "y", kept=True)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), owned=st.booleans())
    def own(self, data: st.DataObject, owned: bool) -> None:
        who, name = data.draw(st.sampled_from(sorted(self.known)))
        session = self.known[who, name]
        if owned:
            session.owner = self
        else:
            self.store.release(session, self)
            self.look(who)

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    def expire(self) -> None:
        self.store.expire()
        self.look(None)

    @rule(who=st.integers(0, KEYS - 1))
    def forget(self, who: int) -> None:
        self.store.forget(self.keys[who])
        for key in [key for key in self.known if key[0] == who]:
            self.orphans.append(self.known.pop(key))
        self.look(None)

    @invariant()
    def counts_are_true(self) -> None:
        assert len(self.store) == len(self.known)
        assert self.store.bytes == sum(session.size for session in self.known.values())
        for who, key in enumerate(self.keys):
            mine = [session for (of, _), session in self.known.items() if of == who]
            assert self.store.kept(key) == (len(mine), sum(session.size for session in mine))
            assert len(mine) <= 4

    @invariant()
    def what_nobody_has_is_known_by_its_last_use(self) -> None:
        accounts = self.store._accounts.values()
        kept = [session for account in accounts for session in account.sessions.values()]
        assert set(self.store._all) == set(kept)
        assert {*self.store._idle} == {session for session in kept if session.owner is None}
        for account in accounts:
            assert set(account.idle.values()) == {one for one in account.sessions.values() if one.owner is None}
        for sessions in (list(self.store._idle), *(list(account.idle.values()) for account in accounts)):
            times = [session.last_used for session in sessions]
            assert times == sorted(times)

    @invariant()
    def bytes_are_bounded(self) -> None:
        for who in range(KEYS):
            mine = [session for (of, _), session in self.known.items() if of == who]
            assert sum(session.size for session in mine) <= SHARE or all(session.owner is not None for session in mine)


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@given(MESSAGES, st.text(max_size=50), st.text(max_size=50))
def test_a_sessions_size_is_at_least_its_texts(messages: list[tuple[str, int]], persona: str, name: str) -> None:
    session = session_of(name)
    history = tuple(Message("user", character * length) for character, length in messages)
    session.apply(start(persona, history))
    texts = [name, persona, *(message.content for message in history)]
    assert session.size >= SESSION_OVERHEAD_BYTES + sum(getsizeof(text) for text in texts if text)


@given(st.lists(st.tuples(st.sampled_from(["x", "🦭"]), st.integers(0, HISTORY_MAX_BYTES + 5)), max_size=12))
def test_history_is_bounded_and_keeps_the_newest(sizes: list[tuple[str, int]]) -> None:
    messages = [Message("user", character * size) for character, size in sizes]
    history = History()
    for message in messages:
        history.extend((message,))
    kept = history.messages()
    assert history.size == sum(map(message_size, kept)) <= HISTORY_MAX_BYTES
    assert list(kept) == messages[len(messages) - len(kept) :]
    dropped = messages[: len(messages) - len(kept)]
    if dropped:
        assert sum(map(message_size, (dropped[-1], *kept))) > HISTORY_MAX_BYTES


def test_history_holds_so_many_messages_at_most() -> None:
    history = History(Message("user", str(n)) for n in range(HISTORY_MAX_MESSAGES + 7))
    assert len(history.messages()) == HISTORY_MAX_MESSAGES
    assert history.messages()[0].content == "7"


# Through a socket


async def test_one_key_cannot_drop_anothers_sessions() -> None:
    async with serving(text_api_key="alice,mallory", max_sessions=4, ws_max_messages_per_window=0) as running:
        async with running.client("alice") as client:
            await client.turn(session_id="A", persona_text="You are Mia.", user_utterance="remember 42")
        async with running.client("mallory") as client:
            for number in range(10):
                await client.turn(session_id=f"m{number}")
        async with running.client("alice") as client:
            await client.send(type="followup", session_id="A", analysis_text="x")
            assert (await client.receive())["type"] == "ack"
        text = running.service.metrics.render().decode()
    assert 'yap_key_sessions{key="unnamed-1"} 1.0' in text
    assert 'yap_key_sessions{key="unnamed-2"} 2.0' in text


async def test_when_all_of_a_keys_sessions_are_in_use_it_is_told_so() -> None:
    async with (
        serving(max_sessions_per_key=1) as running,
        running.client() as one,
        running.client() as other,
    ):
        await one.turn(session_id="a")
        await other.send(type="start", session_id="b", request_id="r")
        frame = await other.receive()
        assert (frame["type"], frame["error_code"], frame["request_id"]) == ("error", "session_quota_exceeded", "r")
        await one.turn(session_id="c")  # it leaves its own
        await other.turn(session_id="c")  # and a session may be taken over as ever


async def test_memory_of_sessions_is_bounded_in_bytes_whatever_they_hold() -> None:
    # One character from beyond the basic plane makes Python keep four bytes for each of a text.
    text = "\U0001f600" + "a" * 60_000
    async with serving(max_session_bytes=1 << 20, ws_max_messages_per_window=0) as running, running.client() as client:
        for number in range(20):
            await client.turn(session_id=f"m{number}", history=[{"role": "user", "content": text}])
        sessions = running.service.sessions
        assert sessions is not None
        assert 3 <= len(sessions) <= 4
        assert sessions.bytes <= 1 << 20
        assert f"yap_session_bytes {float(sessions.bytes)}" in running.service.metrics.render().decode()


async def test_the_number_of_sessions_is_true_when_it_is_read() -> None:
    def told(running: object) -> str:
        text = running.service.metrics.render().decode()  # type: ignore[attr-defined]
        return next(line for line in text.splitlines() if line.startswith("yap_sessions "))

    async with serving(session_idle_ttl_seconds=1000) as running:
        sessions = running.service.sessions
        assert sessions is not None
        sessions._clock = clock = Clock()
        assert told(running) == "yap_sessions 0.0"
        async with running.client() as client:
            for number in range(3):
                await client.turn(session_id=str(number))
            assert told(running) == "yap_sessions 3.0"
        clock.now = 1001
        assert told(running) in ("yap_sessions 0.0", "yap_sessions 1.0")  # the last one's socket may be closing still
