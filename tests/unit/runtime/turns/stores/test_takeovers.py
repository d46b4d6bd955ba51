"""Two servers and one store: whatever is taken over, killed or cut off, what was said is in the history, and once.

A hypothesis state machine speaks to two whole servers through ASGI and moves the one event loop by hand. The store is a
stand-in that answers, does not, or does what it is asked and does not answer. At the end a third server, which knows
nothing, is asked what the history is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
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
from runtime.turns.sessions import keeper
from runtime.turns.stores.interface import StoreError
from runtime.turns.stores.valkey_store import ValkeyStore
from tests.harness.scripted import KEY, ScriptedEngine, ScriptedRenderer
from tests.harness.scripted import settings as server_settings
from tests.harness.stores.inline import InlineExecutor
from tests.harness.stores.session_store import MISSING, VALKEY, StandIn, Valkey, valkey

SESSIONS = st.sampled_from(["a", "b"])
WHICH = st.integers(0, 5)
# Who speaks, for how many steps, and whether the store does what it is asked without answering meanwhile.
PARTS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 120), st.sampled_from([False, False, True])), min_size=3, max_size=6
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
        end: `done`, `cancelled` or `failed`; empty before.
        safe: whether the store must have it, should its server be killed now.
    """

    number: int
    session: str
    server: Server
    said: str = ""
    end: str = ""
    acknowledged: bool = False
    forgotten: bool = False


@dataclass(eq=False)
class Server:
    """One server, with its engine."""

    service: Service
    engine: ScriptedEngine
    endpoint: WebSocketEndpoint
    alive: bool = True
    turns: list[Spoken] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """Whether all that has changed is in the store."""
        keeping = self.service._keeper
        assert keeping is not None
        return keeping.up and not keeping._changed and not keeping._writing and not keeping._gone


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
    """Two servers, two sessions, any number of clients."""

    tick = 0.0

    def __init__(self) -> None:
        super().__init__()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        self.loop = asyncio.new_event_loop()
        self.store = self.make_store()
        self.servers: list[Server] = []
        self.peers: list[Peer] = []
        self.turns: list[Spoken] = []
        self.count = 0
        self.broken: AssertionError | None = None
        self.lazy = keeper.LAZY_S

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
        engine = ScriptedEngine(script=reply_of, abort_steps=2)
        renderer = ScriptedRenderer()
        chat = Chat(engine, renderer, InlineExecutor(), renderer.budgets)
        service.open(chat, None, ServingPlan("chat", ChatServing(renderer.budgets, 150, EngineOptions()), None, None))
        assert service._keeper is not None
        service._keeper._pace = service._keeper._first_wait = 0.0
        return Server(service, engine, WebSocketEndpoint(service))

    @initialize(lazy=st.booleans(), steps=st.integers(0, 6))
    def begin(self, lazy: bool, steps: int) -> None:
        keeper.LAZY_S = 1000.0 if lazy else 0.0
        self.store.steps = steps
        self.servers = [self.within_loop(self.new_server) for _ in range(2)]

    def run(self, steps: int) -> None:
        async def steps_of_the_loop() -> None:
            for _ in range(steps):
                await asyncio.sleep(self.tick)
                self.store.now += 1

        self.loop.run_until_complete(steps_of_the_loop())
        if self.broken is not None:
            raise self.broken

    def pick(self, number: int) -> Peer | None:
        alive = [peer for peer in self.peers if not peer.left and not peer.closed and peer.server.alive]
        return alive[number % len(alive)] if alive else None

    @rule(which=st.integers(0, 1))
    def connect(self, which: int) -> None:
        self.peers.append(self.within_loop(lambda: Peer(self, self.servers[which])))
        self.run(3)

    @rule(which=WHICH, session=SESSIONS, steps=st.integers(0, 40))
    def start(self, which: int, session: str, steps: int) -> None:
        if peer := self.pick(which):
            self.begin_turn(peer, session)
            self.run(steps)

    def begin_turn(self, peer: Peer, session: str) -> None:
        self.count += 1
        turn = Spoken(self.count, session, peer.server)
        self.turns.append(turn)
        peer.turns[f"t{self.count}"] = turn
        peer.say(type="start", session_id=session, request_id=f"t{self.count}", user_utterance=f"u{self.count}")

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
            self.count += 1
            turn = Spoken(self.count, session, peer.server)
            self.turns.append(turn)
            peer.turns[f"t{self.count}"] = turn
            peer.say(type="followup", session_id=session, request_id=f"t{self.count}", analysis_text=f"u{self.count}")
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

    @rule(which=st.integers(0, 1), settled=st.booleans())
    def kill(self, which: int, settled: bool) -> None:
        """End a server without a word; what it had not written is lost with it."""
        server = self.servers[which]
        if settled and not (self.store.down or self.store.deaf):
            self.run(150)
        lost = not server.settled
        for turn in self.turns:
            if turn.server is server and (lost or not turn.end):
                turn.forgotten = True
        server.alive = False
        self.loop.run_until_complete(self.bury(server))
        self.servers[which] = self.within_loop(self.new_server)

    async def bury(self, server: Server) -> None:
        keeping = server.service._keeper
        assert keeping is not None
        gone = StandIn(down=True)
        keeping._store = gone  # nothing of it reaches the store any more
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
            keeper.LAZY_S = 0.0
            self.run(300)
            for peer in self.peers:
                if not peer.left and peer.server.alive:
                    peer.leave()
            self.run(600)
            for server in self.servers:
                assert server.settled, "what has changed is in the store when that answers"
            for session in "ab":
                self.check(session)
        finally:
            keeper.LAZY_S = self.lazy
            for server in self.servers:
                self.loop.run_until_complete(self.bury(server))
            self.close_loop()
            structlog.reset_defaults()

    def check(self, session: str) -> None:
        third = self.within_loop(self.new_server)
        self.servers.append(third)
        peer = self.within_loop(lambda: Peer(self, third))
        self.peers.append(peer)
        peer.turns["last"] = Spoken(0, session, third)
        peer.say(type="start", session_id=session, request_id="last", user_utterance="what was said")
        self.run(100)
        words = third.engine.prompts[-1]
        told = Counter(words)
        for turn in self.turns:
            if turn.session != session:
                assert not told[f"u{turn.number}"]
                continue
            parts = [f"R{turn.number}{letter}" for letter in "abc"]
            assert told[f"u{turn.number}"] <= 1, f"nothing is there twice: {words}"
            assert all(told[part] <= 1 for part in parts), f"nothing is there twice: {words}"
            heard = turn.said.split()
            if turn.acknowledged and not turn.forgotten:
                assert told[f"u{turn.number}"] == 1, f"{turn.number} was acknowledged: {words}"
                assert [part for part in parts if told[part]] == heard, f"{turn.number}: {words}"
            if heard and told[f"u{turn.number}"] and told[parts[0]]:
                assert words.index(f"u{turn.number}") < words.index(parts[0])


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

    async def remove_all(self, prefix: str) -> Any:
        return await self.asked(self.store.remove_all(prefix))

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
