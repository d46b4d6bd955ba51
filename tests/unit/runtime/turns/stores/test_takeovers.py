"""Servers and one store: whatever is taken over, killed or cut off, what was said is in the history, and once.

A hypothesis state machine speaks to three whole servers through ASGI and moves the one event loop by hand. The store is
a stand-in that answers, does not, or does what it is asked and does not answer. Turns that a killed server did not end
are said again, replies are cut, histories replaced. At the end a server that knows nothing is asked what is left.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from runtime.deployment.models import Chat
from runtime.deployment.serving import ChatServing, ServingPlan
from runtime.deployment.session_store import parse
from runtime.engines import EngineOptions
from runtime.server.app import WebSocketEndpoint
from runtime.server.service import Service
from runtime.turns.sessions import pending
from runtime.turns.sessions.lease import Lease
from runtime.turns.stores.interface import StoreError
from runtime.turns.stores.valkey_store import ValkeyStore
from tests.harness.scripted import KEY, ScriptedEngine, ScriptedRenderer
from tests.harness.scripted import settings as server_settings
from tests.harness.stores.inline import InlineExecutor
from tests.harness.stores.session_store import MISSING, VALKEY, StandIn, Valkey, valkey
from tests.harness.waiting import TIMEOUT_S

SESSIONS = st.sampled_from(["a", "b"])
WHICH = st.integers(0, 5)
SERVERS = 3
KINDS = st.sampled_from(["start", "followup"])
# What a client does before it says again what was cut.
FIRST = st.lists(st.sampled_from(["heard", "persona", "outage"]), max_size=3)
STEPS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
# Who speaks, for how many steps, and whether the store does what it is asked without answering meanwhile.
PARTS = st.lists(
    st.tuples(st.integers(0, SERVERS - 1), st.integers(0, 120), st.sampled_from([False, False, True])),
    min_size=3,
    max_size=6,
)


def reply_of(words: list[str]) -> list[str]:
    """A reply that tells which turn it belongs to."""
    number = next((word[1:] for word in reversed(words) if re.fullmatch(r"u\d+", word)), "0")
    return [f"R{number}a ", f"R{number}b ", f"R{number}c"]


@dataclass
class Spoken:
    """A turn, as its client saw it.

    Attributes:
        number: of its words.
        server: which one it was said to.
        said: what came of the reply.
        kind: of its message.
        said: what came of the reply.
        end: `done`, `cancelled` or `failed`; empty before.
        acknowledged: whether its server has said that it begins.
        forgotten: whether the history may be without it.
        heard: characters that were heard of its reply; that may be said again, or not be written.
        replaces: whether its message has a history.
        epoch: under which its server had the session then.
        left_out: numbers of turns whose messages have replaced the history without it.
    """

    number: int
    session: str
    server: Server
    kind: str = "start"
    said: str = ""
    end: str = ""
    acknowledged: bool = False
    forgotten: bool = False
    heard: int | None = None
    replaces: bool = False
    epoch: int = 0
    left_out: set[int] = field(default_factory=set)


@dataclass(eq=False)
class Server:
    """One server, with its engine."""

    service: Service
    engine: ScriptedEngine
    endpoint: WebSocketEndpoint
    alive: bool = True
    turns: list[Spoken] = field(default_factory=list)

    def lease(self, session: str) -> Lease | None:
        """Its lease of a session; none where it does not know it."""
        registry = self.service.sessions
        assert registry is not None
        found = [account.sessions[session] for account in registry._accounts.values() if session in account.sessions]
        return found[0].lease if found else None

    def epoch(self, session: str) -> int:
        """Under which it has a session; 0 where it never took it."""
        lease = self.lease(session)
        return lease.epoch if lease is not None else 0

    def runs(self, turn: Spoken) -> bool:
        """Whether a turn has not ended, nor is about to: its client may not have seen that yet."""
        lease = self.lease(turn.session)
        words = lease.open.utterance.split() if lease is not None and lease.open is not None else []
        return words[-1:] == [f"u{turn.number}"]

    @property
    def settled(self) -> bool:
        """Whether all that has changed is in the store."""
        keeping = self.service._keeper
        assert keeping is not None
        return keeping.settled


class Peer:
    """One client on one server."""

    def __init__(self, world: World, server: Server) -> None:
        self.world, self.server = world, server
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.open: Spoken | None = None
        self.turns: dict[str, Spoken] = {}
        self.session: str | None = None
        self.left = False
        self.closed = False
        scope = {"headers": [(b"x-api-key", KEY.encode())], "query_string": b""}
        self.inbox.put_nowait({"type": "websocket.connect"})
        self.task = world.loop.create_task(server.endpoint(scope, self.inbox.get, self.hear))

    def say(self, **message: Any) -> None:
        self.inbox.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    def leave(self) -> None:
        self.left = True
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def hear(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self.closed = True
            self.inbox.put_nowait({"type": "websocket.disconnect", "code": message["code"]})
        elif message["type"] == "websocket.send":
            frame = json.loads(message["text"])
            try:
                self.check(frame)
            except AssertionError as error:
                self.world.broken = self.world.broken or error
        await asyncio.sleep(0)

    def check(self, frame: dict[str, Any]) -> None:
        kind, turn = frame["type"], self.turns.get(str(frame.get("request_id")))
        if kind == "ack" and frame["for"] in ("start", "followup"):
            assert self.open is None, "the old turn's done precedes the new turn's ack"
            assert turn is not None
            assert not turn.acknowledged
            turn.acknowledged, self.open = True, turn
            turn.epoch = self.server.epoch(turn.session)
            if turn.replaces:
                self.world.replaced(turn)
        elif kind == "ack" and frame["for"] == "heard":
            assert turn is not None
            turn.heard = frame["chars"]
        elif kind == "token":
            assert turn is self.open, "no frame of a turn before its ack or after its done"
            assert turn is not None
            turn.said += frame["text"]
        elif kind == "done":
            if turn is None:  # a cancel's own
                turn = self.open
            if turn is None:
                return
            if not turn.acknowledged:  # it was refused, and a cancel without an id of its own is answered so
                assert frame["cancelled"]
                return
            assert turn is self.open, "a turn ends in one done"
            turn.end = "done" if "usage" in frame else "cancelled"
            self.open = None


class World(RuleBasedStateMachine):
    """Three servers, two sessions, any number of clients."""

    tick = 0.0

    def __init__(self) -> None:
        super().__init__()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        self.loop = asyncio.new_event_loop()
        self.store = self.make_store()
        self.servers: list[Server] = []
        self.peers: list[Peer] = []
        self.turns: list[Spoken] = []
        self.cut: dict[
            str, Spoken
        ] = {}  # by session: the turn that was said last, whose server was killed before its end
        self.count = 0
        self.broken: AssertionError | None = None
        self.lazy = pending.LAZY_S
        self.pause_steps = 0

    def make_store(self) -> Any:
        return StandIn()

    def close_loop(self) -> None:
        self.loop.close()

    def within_loop(self, call: Any) -> Any:
        async def called() -> Any:
            return call()

        return self.loop.run_until_complete(called())

    def new_server(self) -> Server:
        limits = dict.fromkeys(
            ("ws_max_messages_per_window", "ws_max_cancels_per_window", "chat_prompt_update_max_per_window"), 0
        )
        values = {"max_concurrent_connections": 50, "ws_handshake_acquire_timeout_s": 0, "gen_timeout_s": 600}
        service = Service(server_settings(**values, **limits))
        service.store = self.store
        engine = ScriptedEngine(script=reply_of, abort_steps=2, pause_steps=self.pause_steps)
        renderer = ScriptedRenderer()
        chat = Chat(engine, renderer, InlineExecutor(), renderer.budgets)
        service.open(chat, None, ServingPlan("chat", ChatServing(renderer.budgets, 150, EngineOptions()), None, None))
        assert service._keeper is not None
        service._keeper._pace = service._keeper._first_wait = 0.0
        return Server(service, engine, WebSocketEndpoint(service))

    @initialize(lazy=st.booleans(), steps=st.integers(0, 6), pause_steps=st.sampled_from([0, 15]))
    def begin(self, lazy: bool, steps: int, pause_steps: int) -> None:
        self.pause_steps = pause_steps
        pending.LAZY_S = 1000.0 if lazy else 0.0
        self.store.steps = steps
        self.servers = [self.within_loop(self.new_server) for _ in range(SERVERS)]

    def run(self, steps: int) -> None:
        async def steps_of_the_loop() -> None:
            for _ in range(steps):
                await asyncio.sleep(self.tick)
                self.store.now += 1

        self.loop.run_until_complete(steps_of_the_loop())
        if self.broken is not None:
            raise self.broken

    def run_until(self, condition: Callable[[], object], steps: int) -> None:
        """Run so many steps, in which it must come to hold; where answers take real time, for as long as they do."""
        self.run(steps)

    def pick(self, number: int) -> Peer | None:
        alive = [peer for peer in self.peers if not peer.left and not peer.closed and peer.server.alive]
        return alive[number % len(alive)] if alive else None

    @rule(which=st.integers(0, SERVERS - 1))
    def connect(self, which: int) -> None:
        self.peers.append(self.within_loop(lambda: Peer(self, self.servers[which])))
        self.run(3)

    @rule(which=WHICH, session=SESSIONS, steps=st.integers(0, 40))
    def start(self, which: int, session: str, steps: int) -> None:
        if peer := self.pick(which):
            self.begin_turn(peer, session)
            self.run(steps)

    def begin_turn(
        self, peer: Peer, session: str, kind: str = "start", again: Spoken | None = None, **fields: Any
    ) -> None:
        self.cut.pop(session, None)
        self.count += 1
        turn = Spoken(self.count if again is None else again.number, session, peer.server, kind)
        turn.replaces = "history" in fields
        self.turns.append(turn)
        peer.turns[f"t{self.count}"] = turn
        name = "user_utterance" if kind == "start" else "analysis_text"
        peer.say(type=kind, session_id=session, request_id=f"t{self.count}", **{name: f"u{turn.number}"}, **fields)

    @rule(which=WHICH, session=SESSIONS, steps=st.integers(0, 40))
    def start_with_a_history(self, which: int, session: str, steps: int) -> None:
        """Say what was said before, which is nothing that was said here."""
        if peer := self.pick(which):
            self.begin_turn(peer, session, history=[{"role": "user", "content": f"h{self.count + 1}"}])
            self.run(steps)

    def replaced(self, by: Spoken) -> None:
        """Note which turns a history leaves out: those of its server, and those from before it took the session."""
        for turn in self.turns:
            if turn is not by and turn.session == by.session and turn.acknowledged and by.epoch:
                known = turn.server is by.server and turn.epoch <= by.epoch
                if turn.epoch and (known or turn.epoch < by.epoch):
                    turn.left_out.add(by.number)

    def newest(self, which: int) -> Peer:
        self.connect(which)
        return self.peers[-1]

    @rule(session=SESSIONS, order=st.permutations(range(SERVERS)), first=FIRST, kind=KINDS, steps=STEPS)
    def a_server_dies_in_mid_turn(
        self, session: str, order: list[int], first: list[str], kind: str, steps: tuple[int, int, int]
    ) -> None:
        """Its client comes to another one, does this and that there, and says again what was cut."""
        self.store.down = self.store.deaf = False
        self.run(50)
        peer = self.newest(order[0])
        if kind == "followup":
            self.begin_turn(peer, session)
            self.run(200)
        self.begin_turn(peer, session, kind)
        self.run(steps[0])
        turn = self.turns[-1]
        self.kill(order[0], False)
        peer = self.newest(order[1])
        for number, what in enumerate(first):
            peer = self.newest(order[1 + number % 2])
            self.ask(peer, turn, what)
            self.run(steps[1])
        if self.cut.get(session) is turn:
            self.turns.remove(turn)
            self.begin_turn(peer, session, kind, turn)
            self.run(steps[2])

    def ask(self, peer: Peer, turn: Spoken, what: str) -> None:
        """Ask something that begins no turn."""
        if what == "heard":
            number, _ = self.names(turn)[0]
            peer.turns[number] = turn
            peer.say(type="heard", session_id=turn.session, request_id=number, chars=0)
        elif what == "persona":
            self.count += 1
            peer.say(type="chat_prompt", session_id=turn.session, persona_text=f"persona {self.count}")
        elif what == "outage":
            self.store.down = not self.store.down

    @rule(session=SESSIONS, order=st.permutations(range(SERVERS)), steps=st.tuples(*[st.integers(0, 120)] * 4))
    def a_history_is_replaced_while_another_server_speaks(
        self, session: str, order: list[int], steps: tuple[int, int, int, int]
    ) -> None:
        for which, replaces, wait in zip((*order, order[0]), (False, True, False, False), steps, strict=True):
            fields = {"history": [{"role": "user", "content": f"h{self.count + 1}"}]} if replaces else {}
            self.begin_turn(self.newest(which), session, **fields)
            self.run(wait)

    @rule(session=SESSIONS, which=WHICH, steps=st.integers(0, 40))
    def say_again_what_was_cut(self, session: str, which: int, steps: int) -> None:
        """Say on another connection what a killed server has not answered to its end."""
        if (turn := self.cut.get(session)) and (peer := self.pick(which)):
            self.turns.remove(turn)
            self.begin_turn(peer, session, turn.kind, turn)
            self.run(steps)

    @rule(session=SESSIONS, which=WHICH, parts=st.integers(0, 3), steps=st.integers(0, 20))
    def hear(self, session: str, which: int, parts: int, steps: int) -> None:
        """Cut the last reply of a session, perhaps on another server than the one that said it."""
        said = [turn for turn in self.turns if turn.session == session and turn.acknowledged]
        if said and (peer := self.pick(which)):
            number = next(number for number, turn in self.names(said[-1]))
            peer.turns[number] = said[-1]
            peer.say(type="heard", session_id=session, request_id=number, text=" ".join(said[-1].said.split()[:parts]))
            self.run(steps)

    def names(self, turn: Spoken) -> list[tuple[str, Spoken]]:
        return [(name, each) for peer in self.peers for name, each in peer.turns.items() if each is turn]

    @rule(session=SESSIONS, order=PARTS)
    def two_clients_speak_in_one_session(self, session: str, order: list[tuple[int, int, bool]]) -> None:
        for which in {which for which, _, _ in order}:
            self.connect(which)
        newest = {
            which: next(peer for peer in reversed(self.peers) if peer.server is server)
            for which, server in enumerate(self.servers)
            if any(peer.server is server for peer in self.peers)
        }
        for which, steps, deaf in order:
            self.store.deaf = deaf
            self.begin_turn(newest[which], session)
            self.run(steps)
        self.store.deaf = False

    @rule(which=WHICH, session=SESSIONS, steps=st.integers(0, 40))
    def follow_up(self, which: int, session: str, steps: int) -> None:
        if peer := self.pick(which):
            self.begin_turn(peer, session, "followup")
            self.run(steps)

    @rule(which=WHICH, session=SESSIONS)
    def persona(self, which: int, session: str) -> None:
        if peer := self.pick(which):
            self.count += 1
            peer.say(type="chat_prompt", session_id=session, persona_text=f"persona {self.count}")

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        if peer := self.pick(which):
            peer.say(type="cancel")
            for turn in peer.turns.values():  # before its first word it leaves nothing
                turn.forgotten = turn.forgotten or not turn.end

    @rule(which=WHICH, steps=st.integers(0, 20))
    def disconnect(self, which: int, steps: int) -> None:
        if peer := self.pick(which):
            for turn in peer.turns.values():
                turn.forgotten = turn.forgotten or not turn.end
            peer.leave()
            self.run(steps)

    @rule(steps=st.integers(1, 60))
    def time_passes(self, steps: int) -> None:
        self.run(steps)

    @rule(how=st.sampled_from(["down", "deaf"]), steps=st.integers(0, 40))
    def the_store_goes(self, how: str, steps: int) -> None:
        setattr(self.store, how, True)
        self.run(steps)

    @precondition(lambda self: self.store.down or self.store.deaf)
    @rule(steps=st.integers(0, 40))
    def the_store_comes_back(self, steps: int) -> None:
        self.store.down = self.store.deaf = False
        self.run(steps)

    @rule(which=st.integers(0, SERVERS - 1), settled=st.booleans())
    def kill(self, which: int, settled: bool) -> None:
        """End a server without a word; what it had not written is lost with it."""
        server = self.servers[which]
        if settled and not (self.store.down or self.store.deaf):
            self.run(150)
        lost = not server.settled
        for turn in self.turns:
            if turn.server is server and (lost or not turn.end):
                turn.forgotten = True
                if turn is [each for each in self.turns if each.session == turn.session][-1] and server.runs(turn):
                    self.cut[turn.session] = turn
        server.alive = False
        self.loop.run_until_complete(self.bury(server))
        self.servers[which] = self.within_loop(self.new_server)

    async def bury(self, server: Server) -> None:
        keeping = server.service._keeper
        assert keeping is not None
        gone = StandIn(down=True)
        keeping._writer.store = gone  # nothing of it reaches the store any more
        keeping.up = False
        for peer in self.peers:
            if peer.server is server:
                peer.leave()
        await asyncio.gather(*(peer.task for peer in self.peers if peer.server is server))
        await server.service.close()

    def teardown(self) -> None:
        try:
            if not self.servers:
                return
            self.store.down = self.store.deaf = False
            pending.LAZY_S = 0.0
            self.run(300)
            for peer in self.peers:
                if not peer.left and peer.server.alive:
                    peer.leave()
            self.run_until(lambda: all(server.settled for server in self.servers), 600)
            for server in self.servers:
                assert server.settled, "what has changed is in the store when that answers"
            for session in "ab":
                self.check(session)
        finally:
            pending.LAZY_S = self.lazy
            for server in self.servers:
                self.loop.run_until_complete(self.bury(server))
            self.close_loop()
            structlog.reset_defaults()

    def check(self, session: str) -> None:
        last = self.within_loop(self.new_server)
        self.servers.append(last)
        peer = self.within_loop(lambda: Peer(self, last))
        self.peers.append(peer)
        peer.turns["last"] = Spoken(0, session, last)
        peer.say(type="start", session_id=session, request_id="last", user_utterance="what was said")
        self.run_until(lambda: last.engine.prompts, 100)
        words = last.engine.prompts[-1]
        told = Counter(words)
        replaced = [turn for turn in self.turns if turn.session == session and turn.replaces]
        for turn in self.turns:
            if turn.session != session:
                assert not told[f"u{turn.number}"]
                continue
            parts = [f"R{turn.number}{letter}" for letter in "abc"]
            there = [part for part in parts if told[part]]
            assert told[f"u{turn.number}"] <= 1, f"nothing is there twice: {words}"
            assert all(told[part] <= 1 for part in parts), f"nothing is there twice: {words}"
            assert told[f"h{turn.number}"] <= 1, f"nothing is there twice: {words}"
            for number in turn.left_out:
                if told[f"h{number}"]:
                    assert not told[f"u{turn.number}"], (
                        f"{turn.number} comes again though {number} replaced it: {words}"
                    )
            heard = turn.said.split()
            # A history that is there has replaced it, though its turn was cut and said again without one.
            gone = any(told[f"h{number}"] for number in turn.left_out) or self.may_be_left_out(turn, replaced)
            if turn.acknowledged and not turn.forgotten and not gone:
                assert told[f"u{turn.number}"] == 1, f"{turn.number} was acknowledged: {words}"
                cut = heard[: len(there)] if turn.heard is not None else heard
                assert there == cut, f"{turn.number}: {words}"
            if heard and told[f"u{turn.number}"] and told[parts[0]]:
                assert words.index(f"u{turn.number}") < words.index(parts[0])

    def may_be_left_out(self, turn: Spoken, replaced: list[Spoken]) -> bool:
        """Whether a history that a client gave may have come after a turn, or beside it."""
        for other in replaced:
            before = self.turns.index(other) < self.turns.index(turn) and other.acknowledged
            if other is not turn and not (before and 0 < other.epoch <= turn.epoch):
                return True
        return False


class Switched:
    """A real store that does not answer when it is told not to."""

    def __init__(self, store: ValkeyStore) -> None:
        self.store = store
        self.down = self.deaf = False
        self.steps = self.now = 0

    async def asked(self, work: Any) -> Any:
        if self.down:
            work.close()
            raise StoreError("it is down")
        answer = await work
        if self.deaf:
            raise StoreError("no answer came")
        return answer

    async def take(self, place: str) -> Any:
        return await self.asked(self.store.take(place))

    async def look(self, place: str) -> Any:
        return await self.asked(self.store.look(place))

    async def apply(self, changes: Any) -> Any:
        return await self.asked(self.store.apply(changes))

    async def remove_all(self, *prefixes: str) -> Any:
        return await self.asked(self.store.remove_all(*prefixes))

    async def ping(self) -> None:
        await self.asked(self.store.ping())

    async def close(self) -> None:
        """Leave it to the other servers."""


class RealWorld(World):
    """The same with a real store, whose answers take real time."""

    tick = 0.001
    server: Valkey

    def make_store(self) -> Any:
        address = parse(self.server.url)
        assert address is not None
        store = Switched(self.within_loop(lambda: ValkeyStore(address, ttl=60, timeout=10)))
        self.loop.run_until_complete(store.remove_all(""))
        return store

    def run_until(self, condition: Callable[[], object], steps: int) -> None:
        super().run_until(condition, steps)
        patience = time.monotonic() + TIMEOUT_S
        while not condition() and time.monotonic() < patience:
            self.run(10)

    def close_loop(self) -> None:
        self.loop.run_until_complete(self.store.store.close())
        super().close_loop()


@pytest.mark.skipif(VALKEY is None, reason=MISSING)
def test_the_same_holds_with_a_real_store() -> None:
    with valkey() as server:
        RealWorld.server = server
        run_state_machine_as_test(
            RealWorld,
            settings=settings(
                max_examples=4,
                stateful_step_count=15,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            ),
        )


TestTakeovers = World.TestCase
TestTakeovers.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a run is too long to be shrunk in a test
)


@contextmanager
def world(**values: Any) -> Iterator[World]:
    """Run one story, and compare what is left as after any other."""
    found = World()
    found.begin(**values)
    try:
        yield found
    finally:
        found.teardown()


@pytest.mark.parametrize("kind", ["start", "followup"])
@pytest.mark.parametrize(
    "first",
    [
        [],
        ["heard"],
        ["persona"],
        ["heard", "persona"],
        ["outage"],
        ["persona", "outage"],
        ["persona", "heard", "outage"],
    ],
)
def test_what_was_cut_is_said_again_once(first: list[str], kind: str) -> None:
    with world(lazy=False, steps=1, pause_steps=15) as story:
        story.a_server_dies_in_mid_turn(session="a", order=[0, 1, 2], first=first, kind=kind, steps=(20, 60, 60))
        assert len(story.turns) == (2 if kind == "followup" else 1)
        again = story.turns[-1]
        # A server that knows nothing of a session, and cannot ask for it, begins no followup.
        assert again.acknowledged or (kind == "followup" and again.server.lease("a") is None)


@pytest.mark.parametrize("first", [["heard"], ["persona"], ["persona", "heard"]])
def test_what_was_cut_and_is_not_said_again_is_kept(first: list[str]) -> None:
    with world(lazy=False, steps=1, pause_steps=15) as story:
        story.begin_turn(story.newest(0), "a")
        story.run(20)
        cut = story.turns[-1]
        story.kill(0, False)
        for which, what in enumerate(first, 1):
            story.ask(story.newest(which), cut, what)
            story.run(60)
        story.begin_turn(story.newest(2), "a")
        story.run(100)
        assert [word for word in story.servers[2].engine.prompts[-1] if word.startswith("u")] == [
            "u1",
            f"u{story.count}",
        ]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("spoke", [False, True])
def test_a_history_that_was_replaced_stays_so(spoke: bool, lazy: bool) -> None:
    """A turn that runs on a server that lost the session comes late, when a third server has it."""
    with world(lazy=lazy, steps=1, pause_steps=60) as story:
        if spoke:
            story.begin_turn(story.newest(1), "a")
            story.run(200)
        story.begin_turn(story.newest(0), "a")
        story.run(30)
        late = story.turns[-1]
        story.begin_turn(story.newest(1), "a", history=[{"role": "user", "content": f"h{story.count + 1}"}])
        story.run(20)
        story.begin_turn(story.newest(2), "a")
        story.run(400)
        assert late.end
        story.begin_turn(story.newest(0), "a")
        story.run(400)
        said = story.servers[0].engine.prompts[-1]
        assert [word for word in said if word[0] in "uh"] == [
            f"h{late.number + 1}",
            *(f"u{late.number + more}" for more in (1, 2, 3)),
        ]
