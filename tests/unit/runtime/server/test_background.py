"""Something is thrown into each background task of the server: it goes on, or ends what it should end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runtime.deployment.metrics import Metrics
from runtime.engines import EngineDeadError, Load
from runtime.host import supervision
from runtime.server import maintenance, service
from runtime.server.connection import Connection
from runtime.server.life import engine_watch
from runtime.server.service import Phase
from runtime.turns.message_handler import MessageHandler
from runtime.turns.sessions.registry import SessionRegistry
from runtime.turns.sessions.session import Session
from runtime.wire import frames
from tests.harness.scripted import ScriptedClassifier, ScriptedEngine, serving
from tests.harness.waiting import all_gone, eventually

ODD = [RuntimeError, asyncio.CancelledError, SystemExit]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(engine_watch, "HEALTH_INTERVAL_S", 0.01)
    monkeypatch.setattr(maintenance, "EXPIRY_INTERVAL_S", 0.01)


class Odd(ScriptedEngine):
    """Fails in a chosen call, the first few times that it is asked."""

    def __init__(self, where: str, error: type[BaseException], times: int = 3) -> None:
        super().__init__()
        self.where, self.odd, self.times = where, error, times
        self.calls = 0

    def _maybe(self, where: str) -> None:
        if where == self.where:
            self.calls += 1
            if self.calls <= self.times:
                raise self.odd

    async def load(self) -> Load:
        self._maybe("load")
        return await super().load()

    async def health(self) -> None:
        self._maybe("health")
        await super().health()

    async def reset_caches(self) -> bool:
        self._maybe("reset_caches")
        return await super().reset_caches()


@pytest.mark.parametrize("error", ODD)
@pytest.mark.parametrize("where", ["load", "health", "reset_caches"])
async def test_watch_and_cache_reset_outlive_an_odd_answer(where: str, error: type[BaseException]) -> None:
    engine = Odd(where, error)
    async with serving(engine, cache_reset_interval_seconds=0.01) as running:
        await eventually(lambda: engine.calls > 3)
        await eventually(lambda: engine.resets > 2)
        engine.dead = True
        await eventually(lambda: running.service.phase is Phase.DEAD)


async def test_load_that_always_fails_does_not_hide_the_engines_death() -> None:
    engine = Odd("load", RuntimeError, times=10**9)
    async with serving(engine) as running:
        await eventually(lambda: engine.calls > 2)
        engine.dead = True
        await eventually(lambda: running.service.phase is Phase.DEAD)
        with pytest.raises(EngineDeadError):
            await asyncio.wait_for(asyncio.shield(running.service.ended), 20)


def failing(times: int, then: Callable[..., Any]) -> Callable[..., Any]:
    """A function that raises so many times before it does what it should."""
    left: Iterator[int] = iter(range(times))

    def call(*arguments: Any, **named: Any) -> Any:
        if next(left, None) is not None:
            raise RuntimeError("thrown into it")
        return then(*arguments, **named)

    return call


async def test_expiry_of_sessions_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    expired: list[int] = []
    monkeypatch.setattr(SessionRegistry, "expire", failing(2, lambda store: expired.append(1)))
    async with serving():
        await eventually(lambda: len(expired) > 2)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
async def test_whatever_loading_raises_ends_the_service(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    async def load(_: object) -> None:
        raise error

    monkeypatch.setattr(service.Service, "load", load)
    async with serving(opened=False) as running:
        with pytest.raises(RuntimeError):
            await asyncio.wait_for(asyncio.shield(running.service.ended), 20)
        assert running.service.phase is Phase.DEAD


@pytest.mark.parametrize("end", ["drain", "died"])
async def test_one_connection_that_cannot_be_closed_keeps_neither_the_others_nor_the_process(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(
        Connection,
        "drain" if end == "drain" else "close",
        failing(1, getattr(Connection, "drain" if end == "drain" else "close")),
    )
    monkeypatch.setattr(service, "CLOSE_GRACE_S", 0.2)
    async with serving(drain_timeout_s=0.2) as running, running.client() as one, running.client() as two:
        await eventually(lambda: len(running.service.connections) == 2)
        if end == "drain":
            running.service.drain()
        else:
            running.service.died(EngineDeadError("it died"))
        _, pending = await asyncio.wait((running.service.ended,), timeout=20)
        assert not pending
        await asyncio.wait(
            [asyncio.ensure_future(client.socket.wait_closed()) for client in (one, two)],
            return_when=asyncio.FIRST_COMPLETED,
        )


async def test_a_writer_that_fails_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "encode", failing(1, frames.encode))
    async with serving(max_concurrent_connections=1) as running:
        async with running.client() as client:
            await client.send(type="ping")
            await asyncio.wait_for(client.socket.wait_closed(), 20)
        await all_gone(running)
        async with running.client() as client:
            await client.send(type="ping")
            assert (await client.receive())["type"] == "pong"


async def test_a_close_that_fails_half_way_closes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MessageHandler, "close", failing(1, MessageHandler.close))
    async with serving() as running, running.client() as client:
        await client.send(type="end")
        assert (await client.receive())["type"] == "connection_closed"
        await asyncio.wait_for(client.socket.wait_closed(), 20)
        assert client.socket.close_code == 1000


async def test_a_drain_that_cannot_wait_closes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MessageHandler, "wait_until_idle", failing(1, MessageHandler.wait_until_idle))
    async with serving(drain_timeout_s=20) as running, running.client() as client:
        await eventually(lambda: running.service.connections)
        running.service.drain()
        await asyncio.wait_for(client.socket.wait_closed(), 20)
        await asyncio.wait_for(running.service.ended, 20)


@pytest.mark.parametrize("where", ["metrics", "history"])
async def test_a_turn_whose_end_fails_is_ended_and_the_next_one_begins(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "metrics":
        monkeypatch.setattr(Metrics, "turn_ended", failing(1, Metrics.turn_ended))
    else:
        monkeypatch.setattr(Session, "remember", failing(1, Session.remember))
    async with serving() as running, running.client() as client:
        for _ in range(2):
            assert (await client.turn(user_utterance="hello"))[-1].get("failed") is None


async def test_a_prefill_is_answered_though_what_it_is_told_to_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance.CacheResetter, "warmed", failing(1, maintenance.CacheResetter.warmed))
    async with serving() as running, running.client() as client:
        await client.send(type="warm_persona", persona_text="you")
        assert (await client.receive())["type"] == "warmed"


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
async def test_a_message_that_fails_is_answered_and_the_worker_goes_on(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    classifier = ScriptedClassifier()
    monkeypatch.setattr(SessionRegistry, "open", failing(1, SessionRegistry.open))
    async with serving(classifier=classifier) as running, running.client() as client:
        await client.send(type="start", session_id="s", user_utterance="one")
        assert (await client.receive())["error_code"] == "internal_error"
        classifier.error = error()
        await client.turn(user_utterance="two")
        classifier.error = None
        last = (await client.turn(user_utterance="three"))[-1]
        assert json.dumps(last["usage"])


async def test_a_sweep_goes_past_a_socket_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.server.front import sockets

    class Broken:
        @property
        def leaving(self) -> bool:
            raise RuntimeError

    monkeypatch.setattr(sockets, "SWEEP_S", 0.01)
    async with serving(handshake_deadline_s=0.05) as running:
        broken = sockets.Socket()
        broken.peer = Broken()
        running.service.sockets._all.add(broken)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        running.service.sockets._all.discard(broken)
