"""What has ended, and what was dropped, is let go of at once: neither a garbage collector nor a store keeps it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from types import FunctionType, ModuleType, SimpleNamespace
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from runtime.deployment.store_metrics import StoreMetrics
from runtime.engines import Sampling
from runtime.host.ratelimit import SlidingWindow
from runtime.text.prompt import Message
from runtime.turns.answer import Answer, TurnRequest
from runtime.turns.prepared import PreparedReply
from runtime.turns.principal import Principal
from runtime.turns.sessions.exchange import Exchange
from runtime.turns.sessions.keeper import SessionKeeper
from runtime.turns.sessions.pending import BATCH, Pending
from runtime.turns.sessions.registry import SessionRegistry
from runtime.turns.sessions.session import Session
from runtime.turns.stores.sealing import Sealer
from runtime.turns.turn import Turn
from tests.harness.scripted import Client, Running, ScriptedEngine, serving
from tests.harness.stores.session_store import StandIn
from tests.harness.waiting import eventually

KINDS = (Turn, TurnRequest, Answer, PreparedReply, Session)
FIELDS = {"session_id": "a", "persona_text": "x"}
# What the connection and its session know of the last turn.
LAST = 3


@pytest.fixture
def others() -> Iterator[Counter[str]]:
    """What earlier tests have left; nothing is collected meanwhile."""
    gc.collect()
    gc.disable()
    yield alive()
    gc.enable()


def alive() -> Counter[str]:
    """Objects of a turn's that are there, whether or not anything leads to them."""
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one) in KINDS)


def few(others: Counter[str]) -> bool:
    """Whether no more are there than of the last turn."""
    return all(number <= LAST for number in (alive() - others).values())


async def cancelled(client: Client, _: int) -> None:
    await client.send(type="start", user_utterance="hello there", **FIELDS)
    await client.until("token")
    await client.send(type="cancel")
    await client.until("done")


async def spoken(client: Client, _: int) -> None:
    await client.turn(user_utterance="hello there", **FIELDS)


async def barged_in(client: Client, _: int) -> None:
    await client.send(type="start", user_utterance="hello there", **FIELDS)
    await client.until("token")
    await client.send(type="start", user_utterance="and now", **FIELDS)
    await client.until("done")
    await client.until("done")


async def prepared_again(client: Client, number: int) -> None:
    for text in ("hello", "hello there"):
        await client.send(type="prepare", user_utterance=text, **FIELDS)
    await asyncio.sleep(0.003)
    await client.send(type="start", user_utterance="hello there" if number % 2 else "another", **FIELDS)
    await client.until("done")


@pytest.mark.parametrize("way", [spoken, cancelled, barged_in, prepared_again])
async def test_a_turn_that_has_ended_is_gone_however_it_ended(way: object, others: Counter[str]) -> None:
    async with (
        serving(
            ScriptedEngine(pause=0.001),
            ws_max_messages_per_window=0,
            ws_max_cancels_per_window=0,
            ws_max_prepares_per_window=0,
        ) as running,
        running.client() as client,
    ):
        for number in range(20):
            await way(client, number)  # type: ignore[operator]
        await eventually(lambda: few(others))


async def test_a_turn_whose_client_has_gone_is_gone_too(others: Counter[str]) -> None:
    async with serving(ScriptedEngine(pause=0.001), ws_max_messages_per_window=0) as running:
        for _ in range(20):
            async with running.client(compression=None) as client:
                await client.send(type="start", user_utterance="hello there", **FIELDS)
                await client.until("token")
                client.socket.transport.abort()
        await eventually(lambda: not running.service.connections)
        await eventually(lambda: few(others))


class Watched(Message, frozen=True, weakref=True, gc=True):
    """A message that tells whether it is still there; a collector of garbage does not know of it."""


@pytest.mark.parametrize("then", ["nothing", "start", "cancel"])
async def test_a_connection_keeps_nothing_of_a_message_that_prepared_a_reply(
    then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: weakref.WeakSet[Watched] = weakref.WeakSet()
    made = 0

    def watched(role: str, content: str) -> Watched:
        nonlocal made
        made += 1
        message = Watched(role, content)
        there.add(message)
        return message

    monkeypatch.setattr("runtime.wire.fields.Message", watched)
    history = [{"role": "user", "content": f"kept? {number}"} for number in range(50)]

    async def prepare(running: Running, client: Client) -> None:
        await client.send(type="prepare", user_utterance="hello", history=history, **FIELDS)
        if then == "start":
            await client.turn(user_utterance="hello", history=[], **FIELDS)
        elif then == "cancel":
            await client.send(type="cancel")
            await client.until("done")

        def gone() -> bool:
            gc.collect()
            return not there

        await eventually(gone)
        assert made == len(history)

    async with serving(prepare_ttl_s=0.2) as running, running.client() as client:
        await prepare(running, client)


async def test_what_was_said_gives_a_collector_of_garbage_nothing_to_look_through() -> None:
    """Thousands of long conversations would make it stop all turns for a tenth of a second."""

    def looked_through(session: Session) -> int:
        gc.collect()  # what holds texts alone is passed by from its first time on
        seen: dict[int, object] = {id(session): session}
        todo: list[object] = [session]
        while todo:
            for part in gc.get_referents(todo.pop()):
                if (
                    gc.is_tracked(part)
                    and not isinstance(part, (type, ModuleType, FunctionType))
                    and id(part) not in seen
                ):
                    seen[id(part)] = part
                    todo.append(part)
        return len(seen)

    async with serving(ws_max_messages_per_window=0) as running, running.client() as client:
        found = []
        for turns in (5, 40):
            for _ in range(turns):
                await client.turn(user_utterance="hello there", **FIELDS)
            (session,) = [one for one in gc.get_objects() if type(one) is Session and one.session_id == "a"]
            assert session.history.end >= 2 * turns
            found.append(looked_through(session))
        assert found[1] <= found[0] + LAST


PRINCIPAL = Principal("a")


def kept_in(store: StandIn, sessions: int, pace: float = 0.0) -> tuple[SessionKeeper, SessionRegistry]:
    """A registry of so many sessions, and who keeps them in a store."""
    metrics = StoreMetrics(CollectorRegistry())
    keeper = SessionKeeper(store, Exchange(Sealer(), metrics, bounds={}, max_bytes=65_536), metrics, pace=pace)

    def create(name: str) -> Session:
        return Session(name, Sampling(), ("", ""), SlidingWindow(4, 60))

    return keeper, SessionRegistry(create, idle_ttl=1800, maximum=sessions, keeper=keeper)


def speak(session: Session, owner: object) -> None:
    """Have a turn in a session, by a connection."""
    turn = cast("Turn", SimpleNamespace(request_id="x", said="a reply", heard=None))
    session.owner = owner
    session.begin(turn, "hello")
    session.remember(turn, "hello", kept=True)
    session.forget(turn)


async def test_sessions_that_are_dropped_while_the_store_is_gone_are_gone() -> None:
    """Those of open connections that wait to be written stand before them, and none of all can be written."""
    store = StandIn()
    keeper, registry = kept_in(store, 50)
    writing = asyncio.create_task(keeper.run())
    connected = [registry.open(PRINCIPAL, f"connected {number}") for number in range(20)]
    for session in connected:
        await keeper.take(session)
        speak(session, keeper)
    await eventually(lambda: keeper.settled)
    store.down = True
    for session in connected:
        speak(session, keeper)
    await eventually(lambda: not keeper.up)
    for number in range(500):
        session = registry.open(PRINCIPAL, f"new {number}")
        speak(session, registry)
        registry.release(session, registry)
        del session
    gc.collect()
    assert len(registry) == 50
    here = [one for one in gc.get_objects() if type(one) is Session and one.session_id.startswith("new ")]
    assert len(here) <= 51, "one more may be in the hands of whoever writes"
    del here
    store.down = False
    await eventually(lambda: keeper.settled)
    assert sum(there.value is not None for there in store.places.values()) == 50
    writing.cancel()
    await keeper.stop()


async def test_whoever_waits_for_its_session_is_woken_when_that_is_written_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thousands of connections end together, each round has a few of their sessions, and all have a second."""
    asked, contains = 0, Pending.__contains__

    def counted(pending: Pending, session: object) -> bool:
        nonlocal asked
        asked += 1
        return contains(pending, session)

    monkeypatch.setattr(Pending, "__contains__", counted)
    keeper, registry = kept_in(StandIn(), 20 * BATCH)
    sessions = [registry.open(PRINCIPAL, str(number)) for number in range(20 * BATCH)]
    for session in sessions:
        await keeper.take(session)
        speak(session, keeper)
    writing = asyncio.create_task(keeper.run())
    await asyncio.gather(*map(keeper.saved, sessions))
    assert asked <= 3 * len(sessions)
    assert keeper.settled
    await asyncio.gather(*map(keeper.saved, sessions))  # nothing to wait for
    writing.cancel()
    await keeper.stop()


@pytest.mark.parametrize("why", ["the store is gone", "they are dropped"])
async def test_nobody_waits_for_a_session_that_will_not_be_written(why: str) -> None:
    store = StandIn()
    keeper, registry = kept_in(store, 10, pace=3600)
    session = registry.open(PRINCIPAL, "s")
    await keeper.take(session)
    speak(session, keeper)
    waiting = asyncio.create_task(keeper.saved(session))
    await asyncio.sleep(0)
    assert not waiting.done()
    if why == "they are dropped":
        registry.lose(session)
    else:
        store.down = True
        writing = asyncio.create_task(keeper.run())
        await eventually(lambda: not keeper.up)
        writing.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert waiting.done()
    await keeper.saved(session)
    await keeper.stop()


async def test_enough_for_a_whole_round_is_written_without_waiting_for_more() -> None:
    keeper, registry = kept_in(StandIn(), 1000, pace=3600)
    writing = asyncio.create_task(keeper.run())
    for number in range(10 * BATCH):
        session = registry.open(PRINCIPAL, str(number))
        await keeper.take(session)
        speak(session, keeper)
    await eventually(lambda: keeper.settled)
    writing.cancel()
    await keeper.stop()
