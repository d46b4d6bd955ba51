"""The contract's six invariants, in any order of messages over several connections and sessions.

A hypothesis state machine speaks to the application through ASGI, without sockets, and moves the event loop by hand, so
that messages fall between any two steps of a turn. Each frame is checked at the moment it is sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import structlog
from hypothesis import HealthCheck, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from runtime.deployment.models import Chat
from runtime.deployment.serving import ChatServing, ServingPlan, ToolServing
from runtime.engines import EngineOptions, Places
from runtime.server.app import WebSocketEndpoint
from runtime.server.service import Service
from runtime.text.sanitizer.sanitize import sanitize
from tests.harness.scripted import KEY, ScriptedClassifier, ScriptedEngine, ScriptedRenderer
from tests.harness.scripted import settings as server_settings
from tests.harness.stores.inline import InlineExecutor

SLOTS = 3
REPLY = ("well", " **now**", " look", " at", " 3.5", " :) ", "it", " is", " done")
SESSIONS = st.sampled_from(["a", "b"])
# `look` is what the scripted classifier says yes to.
UTTERANCES = st.sampled_from(["hello", "look here", ""])


# A prepared reply rests in the middle of that one. So many sequences at once, fewer than clients and sessions want.
PREPARE_TOKENS, PLACES = 4, 2

HEARD_ERRORS = ("no_such_reply", "chars_out_of_range")


def rest_of_reply(words: list[str]) -> tuple[str, ...]:
    """What is still to be said behind a prompt, which may end with the reply's beginning."""
    said = [word.strip() for word in REPLY]
    told = next((count for count in range(len(REPLY) - 1, 0, -1) if words[-count:] == said[:count]), 0)
    return REPLY[told:]


class Peer:
    """One client, and what it may expect."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.frames: list[dict[str, Any]] = []
        self.open_turn: str | None = None
        self.said = ""
        self.final: str | None = None
        self.turns: set[str] = set()
        self.acknowledged: list[str] = []
        self.ended: list[str] = []
        self.cancels: dict[str, int] = {}
        self.rejected: dict[str, int] = {}
        self.pings: dict[str, int] = {}
        self.prepares: dict[str, dict[str, Any]] = {}  # by their ids, what was to be prepared
        self.unsaid: list[str] = []  # those that no `start` has come for, the newest last
        self.prepared = 0  # turns that one of them was for
        self.unheard = 0  # `heard` that have no answer yet
        self.close_code: int | None = None
        self.admitted = False
        self.left = False
        scope = {"headers": [(b"x-api-key", KEY.encode())], "query_string": b""}
        self.inbox.put_nowait({"type": "websocket.connect"})
        self.task = world.loop.create_task(world.endpoint(scope, self.inbox.get, self.hear))

    def say(self, **message: Any) -> None:
        self.inbox.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    @property
    def alive(self) -> bool:
        return self.close_code is None and not self.left

    async def hear(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            assert self.close_code is None
            self.close_code = message["code"]
            self.inbox.put_nowait({"type": "websocket.disconnect", "code": self.close_code})
        elif message["type"] == "websocket.send":
            assert self.close_code is None
            frame = json.loads(message["text"])
            self.frames.append(frame)
            try:
                self.check(frame)
            except AssertionError as error:
                self.world.broken = self.world.broken or error  # raised where hypothesis sees it
        await asyncio.sleep(0)

    def check(self, frame: dict[str, Any]) -> None:
        kind, request = frame["type"], frame.get("request_id")
        assert request not in self.prepares or kind == "error", "nothing of a prepared reply is seen"
        if kind == "ack" and frame["for"] in ("start", "followup"):
            assert self.open_turn is None, "the old turn's done precedes the new turn's ack"
            assert request in self.turns
            assert request not in self.acknowledged
            self.acknowledged.append(request)
            self.open_turn, self.said, self.final = request, "", None
        elif kind in ("token", "toolcall", "final"):
            assert request == self.open_turn, "no frame of a turn before its ack or after its done"
            assert self.final is None
            if kind == "token":
                assert frame["text"]
                self.said += frame["text"]
            elif kind == "final":
                self.final = frame["normalized_text"]
                assert self.said == self.final == sanitize("".join(REPLY))
        elif kind == "done":
            self.check_done(frame, request)
        elif (kind, frame.get("for")) == ("ack", "heard") or frame.get("error_code") in HEARD_ERRORS:
            self.unheard -= 1
        elif frame.get("error_code") == "no_active_session" and request in self.acknowledged:
            self.unheard -= 1  # another connection has taken the session over since
        elif kind == "pong":
            self.pings[request] -= 1
        elif request in self.rejected:
            assert kind == "error"
            assert frame["field"] in frame["message"]
            assert frame["expected"]
            assert frame["found"]
            self.rejected[request] -= 1

    def check_done(self, frame: dict[str, Any], request: str) -> None:
        if request in self.cancels:
            assert frame["cancelled"] is True
            self.cancels[request] -= 1
            if self.open_turn is None:
                return
        else:
            assert request == self.open_turn, "a turn ends in one done"
            assert ("usage" in frame) == (self.final is not None)
        turn = self.open_turn
        assert turn is not None
        self.prepared += frame.get("usage", {}).get("prepared", False)
        self.ended.append(turn)
        self.open_turn = None
        # A reply that is prepared while the turn runs has its words before its own.
        held = [
            words
            for number in self.world.engine.held
            if not self.world.prepares & set(words := self.world.engine.prompts[number])
        ]
        assert not any(turn in words for words in held), "after its done the engine holds nothing of a turn"


class World(RuleBasedStateMachine):
    """Three slots, two sessions, any number of clients."""

    def __init__(self) -> None:
        super().__init__()
        # Failures are part of the play: their tracebacks would fill the report and take most of the time.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        self.loop = asyncio.new_event_loop()
        self.peers: list[Peer] = []
        self.count = 0
        self.prepares: set[str] = set()  # their ids, of all clients
        self.broken: AssertionError | None = None
        self.engine = ScriptedEngine(script=rest_of_reply, abort_steps=4)
        self.classifier = ScriptedClassifier()
        self.loop.run_until_complete(self.open())

    async def open(self) -> None:
        values = {"max_concurrent_connections": SLOTS, "ws_handshake_acquire_timeout_s": 0, "gen_timeout_s": 600}
        values |= {"prepare_max_tokens": PREPARE_TOKENS, "prepare_ttl_s": 600, "ws_max_prepares_per_window": 0}
        limits = dict.fromkeys(
            ("ws_max_messages_per_window", "ws_max_cancels_per_window", "chat_prompt_update_max_per_window"), 0
        )
        self.service = Service(server_settings(**values, **limits))
        renderer = ScriptedRenderer()
        self.places = Places(PLACES)
        chat = Chat(self.engine, renderer, InlineExecutor(), renderer.budgets, places=self.places)
        plan = ServingPlan("both", ChatServing(renderer.budgets, 150, EngineOptions()), ToolServing(0.66, 9, 0.2), None)
        self.service.open(chat, self.classifier, plan)
        self.endpoint = WebSocketEndpoint(self.service)

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def run(self, steps: int) -> None:
        async def steps_of_the_loop() -> None:
            for _ in range(steps):
                await asyncio.sleep(0)

        self.loop.run_until_complete(steps_of_the_loop())
        if self.broken is not None:
            raise self.broken
        assert self.places.lent == 0 or self.places.turns + self.places.lent <= PLACES, "prepared replies give way"

    def pick(self, number: int) -> Peer | None:
        alive = [peer for peer in self.peers if peer.alive and peer.admitted]
        return alive[number % len(alive)] if alive else None

    @initialize()
    def first(self) -> None:
        self.connect()

    @rule()
    def connect(self) -> None:
        before = sum(peer.alive and peer.admitted for peer in self.peers)
        peer = Peer(self)
        self.peers.append(peer)
        self.run(12)
        peer.admitted = not peer.frames
        assert peer.admitted or before == SLOTS
        if not peer.admitted:
            assert peer.frames[0]["error_code"] == "server_at_capacity"
            assert peer.close_code == 1013

    @rule(which=st.integers(0, 5), steps=st.integers(0, 6), session=SESSIONS, utterance=UTTERANCES)
    def start(self, which: int, steps: int, session: str, utterance: str) -> None:
        if peer := self.pick(which):
            turn = self.name("t")
            peer.turns.add(turn)
            words = f"{utterance} {turn}" if utterance else ""
            # The turn's name is in its prompt, so that what the engine holds can be told apart.
            peer.say(
                type="start", session_id=session, request_id=turn, user_utterance=words, runtime_text=turn, history=[]
            )
            self.run(steps)

    @rule(which=st.integers(0, 5), steps=st.integers(0, 25), session=SESSIONS, utterance=UTTERANCES)
    def prepare(self, which: int, steps: int, session: str, utterance: str) -> None:
        if peer := self.pick(which):
            name = self.name("p")
            asked = {"session_id": session, "user_utterance": f"{utterance} {name}", "runtime_text": name}
            peer.prepares[name] = asked
            self.prepares.add(name)
            peer.unsaid.append(name)
            peer.say(type="prepare", request_id=name, **asked)
            self.run(steps)

    @rule(which=st.integers(0, 5), steps=st.integers(0, 6), back=st.sampled_from([0, 0, 0, 1]))
    def start_what_was_prepared(self, which: int, steps: int, back: int) -> None:
        if (peer := self.pick(which)) and len(peer.unsaid) > back:
            turn = self.name("t")
            peer.turns.add(turn)
            peer.say(type="start", request_id=turn, **peer.prepares[peer.unsaid.pop(-1 - back)])
            self.run(steps)

    @rule()
    def time_is_over_for_what_was_prepared(self) -> None:
        assert self.service.sessions is not None
        for held in list(self.service.sessions.prepared._held.values()):
            held.end("expired")

    @rule(which=st.integers(0, 5), steps=st.integers(0, 6))
    def cancel(self, which: int, steps: int) -> None:
        if peer := self.pick(which):
            request = self.name("c")
            peer.cancels[request] = 1
            peer.say(type="cancel", request_id=request)
            self.run(steps)

    @rule(which=st.integers(0, 5))
    def ping(self, which: int) -> None:
        if peer := self.pick(which):
            request = self.name("p")
            peer.pings[request] = 1
            peer.say(type="ping", request_id=request)

    @rule(which=st.integers(0, 5), kind=st.sampled_from(["warm_persona", "warm_history", "chat_prompt"]))
    def between_turns(self, which: int, kind: str) -> None:
        if peer := self.pick(which):
            request = self.name("w")
            peer.say(type=kind, request_id=request, persona_text=f"persona {self.count}", history=[])

    @rule(which=st.integers(0, 5), steps=st.integers(0, 6), session=st.none() | SESSIONS)
    def follow_up(self, which: int, steps: int, session: str | None) -> None:
        if (peer := self.pick(which)) and peer.acknowledged:
            turn = self.name("t")
            peer.turns.add(turn)
            peer.say(type="followup", request_id=turn, analysis_text=f"a cat {turn}", session_id=session)
            self.run(steps)

    @rule(which=st.integers(0, 5), chars=st.integers(0, 40))
    def hear(self, which: int, chars: int) -> None:
        if (peer := self.pick(which)) and peer.acknowledged:
            peer.unheard += 1
            peer.say(type="heard", request_id=peer.acknowledged[-1], chars=chars)

    @rule(which=st.integers(0, 5), bad=st.sampled_from([{"temperature": 9}, {"history": 1}, {"gender": "x"}]))
    def nonsense(self, which: int, bad: dict[str, Any]) -> None:
        if peer := self.pick(which):
            request = self.name("x")
            peer.rejected[request] = 1
            peer.say(type="start", session_id="a", request_id=request, **bad)

    @rule(which=st.integers(0, 5))
    def end(self, which: int) -> None:
        if peer := self.pick(which):
            peer.say(type="end")
            self.run(60)
            assert peer.frames[-1]["type"] == "connection_closed"
            assert peer.close_code == 1000
            assert peer.open_turn is None

    @rule(which=st.integers(0, 5))
    def disconnect(self, which: int) -> None:
        if peer := self.pick(which):
            peer.left = True
            peer.inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
            self.run(60)

    @rule(steps=st.integers(1, 25))
    def time_passes(self, steps: int) -> None:
        self.run(steps)

    @precondition(lambda self: self.engine.fail_after is None)
    @rule(after=st.integers(0, 4))
    def engine_breaks(self, after: int) -> None:
        self.engine.fail_after = after

    @precondition(lambda self: self.engine.fail_after is not None)
    @rule()
    def engine_recovers(self) -> None:
        self.engine.fail_after = None

    def teardown(self) -> None:
        try:
            self.run(600)
            for peer in self.peers:
                if peer.alive and peer.admitted:
                    answered = {frame.get("request_id") for frame in peer.frames if frame["type"] == "error"}
                    assert sorted(peer.ended) == sorted(peer.acknowledged), "every turn ends in exactly one done"
                    # A follow-up whose session another connection has taken over is refused.
                    assert peer.turns <= set(peer.acknowledged) | answered
                    assert set(peer.cancels.values()) <= {0}
                    assert set(peer.pings.values()) <= {0}
                    assert peer.unheard == 0
                    assert set(peer.rejected.values()) <= {0}
            alive = [peer for peer in self.peers if peer.alive and peer.admitted]
            assert self.service.admission.held == len(alive) == len(self.service.connections)
            assert not self.engine.held
            assert self.classifier.running == 0
            assert (self.places.turns, self.places.lent) == (0, 0)
            self.check_what_was_prepared()
        finally:
            for peer in self.peers:
                peer.inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
            self.loop.run_until_complete(asyncio.gather(*(peer.task for peer in self.peers)))
            self.loop.run_until_complete(self.service.close())
            self.loop.close()
            structlog.reset_defaults()
        assert self.service.admission.held == 0
        assert self.service.sessions is not None
        assert len(self.service.sessions.prepared) == 0, "none outlives its connection"

    def check_what_was_prepared(self) -> None:
        """Only what a `start` has said is in a history, and there once."""
        assert self.service.sessions is not None
        unsaid = {name for peer in self.peers for name in peer.unsaid}
        for account in self.service.sessions._accounts.values():
            for session in account.sessions.values():
                said = [message.content for message in session.history.messages() if message.role == "user"]
                names = [text.rsplit(" ", 1)[-1] for text in said]
                assert not unsaid & set(names)
                assert len(names) == len(set(names))
        hits = self.service.metrics.registry.get_sample_value("yap_prepared_replies_total", {"outcome": "hit"}) or 0
        assert sum(peer.prepared for peer in self.peers) <= hits
        target(hits)


TestInvariants = World.TestCase
TestInvariants.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
