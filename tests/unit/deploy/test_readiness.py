"""What `/readyz` and `/metrics` say of a server's load is what the server then does."""

from __future__ import annotations

import asyncio
from dataclasses import fields

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines import Load
from runtime.server.readiness import Readiness, readiness
from tests.harness.scripted import Running, ScriptedEngine, serving

PHASES = ("loading", "ready", "draining", "dead")


async def body(running: Running) -> dict[str, object]:
    async with httpx.AsyncClient() as http:
        return dict((await http.get(f"http://127.0.0.1:{running.port}/readyz")).json())


def figure(running: Running, name: str) -> float:
    text = running.service.metrics.render().decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


@given(
    phase=st.sampled_from(PHASES),
    degraded=st.sampled_from([(), ("classifier",)]),
    chat=st.booleans(),
    slots=st.integers(1, 500),
    data=st.data(),
)
def test_free_slots_are_told_where_a_connection_would_be_taken_and_nowhere_else(
    phase: str, degraded: tuple[str, ...], chat: bool, slots: int, data: st.DataObject
) -> None:
    held = data.draw(st.integers(0, slots))
    found = readiness(
        phase,
        "why" if phase != "ready" else "",
        degraded,
        chat=chat,
        held=held,
        slots=slots,
        sessions=3,
        load=Load(1, 2, 0.5),
    )
    assert found.ready == (phase == "ready" and (chat or not degraded))
    assert found.slots_free == (slots - held if found.ready else 0)
    assert found.draining == (phase == "draining")
    assert bool(found.reason) == (not found.ready or bool(degraded))
    assert set(found.answer()) == {field.name for field in fields(Readiness)}


async def test_slots_and_sessions_are_told_as_they_are() -> None:
    engine = ScriptedEngine()
    async with serving(engine, max_concurrent_connections=3) as running:
        assert (await body(running))["slots_free"] == 3
        async with running.client() as client, running.client():
            await client.turn(user_utterance="hello")
            told = await body(running)
            assert (told["slots_free"], told["slots_held"], told["slots"], told["sessions"]) == (1, 2, 3, 1)
            assert (figure(running, "yap_slots_free"), figure(running, "yap_ready")) == (1.0, 1.0)


async def test_what_a_router_must_know_of_a_drain_is_told_before_the_last_turn_has_ended() -> None:
    engine = ScriptedEngine(reply=["word "] * 20, pause=0.02)
    async with serving(engine) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="hello")
        await client.until("token")
        running.service.drain()
        told = await body(running)
        assert (told["status"], told["draining"], told["slots_free"], told["slots_held"]) == ("draining", True, 0, 1)
        assert (figure(running, "yap_slots_free"), figure(running, "yap_ready")) == (0.0, 0.0)
        await client.until("done")
        await asyncio.wait_for(asyncio.shield(running.service.ended), 5)


async def test_the_engines_load_is_told() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with serving(engine) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="hello")
        for _ in range(200):
            if (await body(running))["requests_running"] == 1:
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the running request was never told")
        engine.gate.set()
        await client.until("done")
