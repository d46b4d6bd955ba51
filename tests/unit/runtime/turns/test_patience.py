"""Nobody waits for what will not come: prefills and idle sockets, drains, an engine that failed, a hung classifier."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.deployment.breaker import MISSES, Breaker
from runtime.deployment.classifier import Decision
from tests.harness.scripted import Client, Running, ScriptedClassifier, ScriptedEngine, serving
from tests.harness.waiting import eventually

# Longer than any test lasts.
NEVER = 600.0


async def closed(client: Client) -> tuple[int, str]:
    await asyncio.wait_for(client.socket.wait_closed(), 20)
    assert client.socket.close_code is not None
    return client.socket.close_code, client.socket.close_reason or ""


async def ready(running: Running) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.get(f"http://127.0.0.1:{running.port}/readyz")


# Idle


async def test_a_prefill_longer_than_the_idle_timeout_is_not_idle_and_the_time_runs_from_its_end() -> None:
    gate = asyncio.Event()
    async with serving(ScriptedEngine(gate=gate), ws_idle_timeout_s=0.3) as running, running.client() as client:
        await client.send(type="warm_persona", persona_text="You are Mia.", request_id="w")
        assert await client.silent(1.0)
        gate.set()
        assert (await client.receive())["type"] == "warmed"
        assert await closed(client) == (4000, "idle_timeout")


# Draining


@pytest.mark.parametrize("kind", ["warm_persona", "warm_history"])
async def test_a_drain_answers_the_prefill_that_runs_and_aborts_it(kind: str) -> None:
    async with serving(ScriptedEngine(gate=asyncio.Event())) as running, running.client() as client:
        for number in range(3):
            await client.send(type=kind, persona_text="You are Mia.", history=[], request_id=number)
        await client.send(type="ping")
        await client.until("pong")
        await eventually(lambda: len(connection_of(running)._handler._warming.tasks) == 3)
        running.service.drain()
        frames = [await client.receive() for _ in range(4)]
        assert frames[0]["type"] == "draining"
        assert [(f["error_code"], f["request_id"]) for f in frames[1:]] == [("draining", n) for n in range(3)]
        assert await closed(client) == (1001, "draining")


def connection_of(running: Running) -> Any:
    (connection,) = running.service.connections
    return connection


async def test_what_still_waits_at_the_end_of_a_drain_is_answered_too() -> None:
    engine = ScriptedEngine(pause=0.01, reply=["word "] * 10_000, abort_seconds=2)
    async with serving(engine, drain_timeout_s=0.1) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="one", request_id="old")
        await client.until("token")
        # The barge-in waits for the old turn's end, and the others behind it.
        await client.send(type="start", session_id="s1", user_utterance="two", request_id="new")
        await client.send(type="chat_prompt", persona_text="p", request_id="prompt")
        await client.send(type="warm_persona", persona_text="p", request_id="warm")
        await client.send(type="ping")
        await client.until("pong")
        running.service.drain()
        seen = []
        while len(seen) < 4:
            frame = await client.receive()
            if frame["type"] not in ("token", "draining"):
                seen.append(frame)
        told = {frame["request_id"]: frame for frame in seen}
        assert told["old"]["cancelled"] is True
        assert [told[name]["error_code"] for name in ("new", "prompt", "warm")] == ["draining"] * 3
        assert told["prompt"]["for"] == "chat_prompt"
        assert await closed(client) == (1001, "draining")


# The engine


async def test_an_engine_that_fails_is_told_at_once_whatever_the_classifier_does() -> None:
    engine, classifier = ScriptedEngine(fail_after=0), ScriptedClassifier(pause=NEVER)
    async with serving(engine, classifier, tool_timeout_s=NEVER) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="hello")
        assert [frame["type"] for frame in await client.until("done")] == ["ack", "error", "done"]
        assert classifier.running == 0


async def test_an_engine_that_dies_is_told_to_turns_and_prefills_at_once() -> None:
    engine, classifier = ScriptedEngine(gate=asyncio.Event()), ScriptedClassifier(pause=NEVER)
    async with serving(engine, classifier, tool_timeout_s=NEVER) as running, running.client() as client:
        await client.send(type="warm_persona", persona_text="p", request_id="warm")
        await client.send(type="start", session_id="s1", user_utterance="hello", request_id="turn")
        await client.until("ack")
        engine.dead = True
        told = {}
        while len(told) < 2:
            frame = await client.receive()
            if frame["type"] == "error":
                told[frame["request_id"]] = frame["error_code"]
        assert told == {"warm": "generation_failed", "turn": "generation_failed"}
        assert await closed(client) == (1001, "engine_died")


# The classifier


async def decided(client: Client, **message: Any) -> dict[str, Any]:
    return next(frame for frame in await client.turn(**message) if frame["type"] == "toolcall")


async def test_a_hung_classifier_is_not_waited_for_after_three_timeouts_and_asked_again() -> None:
    classifier = ScriptedClassifier(gate=asyncio.Event())
    async with serving(classifier=classifier, tool_timeout_s=0.05) as running, running.client() as client:
        for _ in range(MISSES):
            assert (await ready(running)).json()["degraded"] == []
            assert (await decided(client, user_utterance="look"))["status"] == "no"
        asked = len(classifier.asked)
        answer = await ready(running)
        assert (answer.status_code, answer.json()["degraded"]) == (200, ["classifier"])
        assert b"yap_tool_degraded 1.0" in running.service.metrics.render()
        # As long as it is open no turn asks, and none waits.
        for _ in range(5):
            assert (await decided(client, user_utterance="look"))["status"] == "no"
        assert all(utterance != "look" for _, utterance in classifier.asked[asked:])
        assert b'yap_tool_decisions_total{status="skipped"} 5.0' in running.service.metrics.render()
        assert classifier.gate is not None
        classifier.gate.set()
        await eventually(lambda: not running.service.degraded)
        assert (await ready(running)).json()["degraded"] == []
        assert b"yap_tool_degraded 0.0" in running.service.metrics.render()
        assert (await decided(client, user_utterance="look"))["status"] == "yes"


async def test_a_classifier_that_answers_others_meanwhile_is_busy_and_no_case_for_the_breaker() -> None:
    class Busy(ScriptedClassifier):
        """Answers others before it comes to a question that waits too long."""

        async def decide(self, history: Sequence[str], utterance: str) -> Decision:
            if utterance == "long":
                breaker.answered()
            return await super().decide(history, utterance)

    async with serving(classifier=Busy(gate=asyncio.Event()), tool_timeout_s=0.05) as running:
        assert running.service.deployment is not None
        breaker = running.service.deployment.breaker
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(running.client()) for _ in range(2 * MISSES)]
            every = [decided(client, session_id=f"s{n}", user_utterance="long") for n, client in enumerate(clients)]
            assert [frame["status"] for frame in await asyncio.gather(*every)] == ["no"] * len(clients)
            assert not breaker.open
            for _ in range(MISSES):
                await decided(clients[0], user_utterance="look")
            assert breaker.open


async def test_a_classifier_that_fails_is_left_alone_as_well_and_its_probe_goes_on() -> None:
    classifier = ScriptedClassifier(error=RuntimeError("broken"))
    async with serving(classifier=classifier, tool_timeout_s=0.5) as running, running.client() as client:
        for _ in range(MISSES):
            await client.turn(user_utterance="look")
        assert running.service.degraded == ("classifier",)
        classifier.error = None
        await eventually(lambda: not running.service.degraded)


@pytest.mark.parametrize("chat", [True, False])
async def test_turns_that_wait_when_the_breaker_opens_decide_no_at_once(chat: bool) -> None:
    classifier = ScriptedClassifier(gate=asyncio.Event())
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(serving(chat=chat, classifier=classifier, tool_timeout_s=NEVER))
        clients = [await stack.enter_async_context(running.client()) for _ in range(4)]
        for number, client in enumerate(clients):
            await client.send(type="start", session_id=f"s{number}", user_utterance="look")
        await eventually(lambda: classifier.running == len(clients))
        assert running.service.deployment is not None
        for _ in range(MISSES):
            running.service.deployment.breaker.missed()
        for client in clients:
            frames = await client.until("done")
            assert [frame["status"] for frame in frames if frame["type"] == "toolcall"] == ["no"]
            assert not frames[-1].get("cancelled")
            assert not frames[-1].get("failed")
        assert classifier.running == 0  # nothing is left behind of what they asked
        assert b'yap_tool_decisions_total{status="skipped"} 4.0' in running.service.metrics.render()


async def test_an_answer_counts_that_comes_with_the_opening_of_the_breaker() -> None:
    gate = asyncio.Event()
    classifier = ScriptedClassifier(gate=gate)
    async with serving(classifier=classifier, tool_timeout_s=NEVER) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="look")
        await eventually(lambda: classifier.running == 1)
        assert running.service.deployment is not None
        gate.set()
        await eventually(lambda: classifier.running == 0)
        for _ in range(MISSES):
            running.service.deployment.breaker.missed()
        frames = await client.until("done")
        assert [frame["status"] for frame in frames if frame["type"] == "toolcall"] == ["yes"]


async def test_a_turn_is_released_though_the_breaker_closes_again_at_once() -> None:
    classifier = ScriptedClassifier(gate=asyncio.Event())
    async with serving(classifier=classifier, tool_timeout_s=NEVER) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="look")
        await eventually(lambda: classifier.running == 1)
        assert running.service.deployment is not None
        breaker = running.service.deployment.breaker
        for _ in range(MISSES):
            breaker.missed()
        breaker.answered()
        frames = await client.until("done")
        assert [frame["status"] for frame in frames if frame["type"] == "toolcall"] == ["no"]


@given(st.lists(st.sampled_from(["miss", "answer", "wait"]), max_size=20))
def test_who_waits_is_told_of_the_next_opening(events: list[str]) -> None:
    async def follow() -> None:
        breaker = Breaker()
        waiting: list[asyncio.Future[None]] = []
        for event in events:
            if event == "wait":
                waiting.append(breaker.opening())
            else:
                (breaker.missed if event == "miss" else breaker.answered)()
            if breaker.open:
                assert all(future.done() for future in waiting)
            elif event == "wait":
                assert not waiting[-1].done()

    asyncio.run(follow())


async def test_without_a_chat_model_a_hung_classifier_is_not_ready() -> None:
    classifier = ScriptedClassifier(gate=asyncio.Event())
    async with serving(chat=False, classifier=classifier, tool_timeout_s=0.05) as running, running.client() as client:
        for _ in range(MISSES + 1):
            assert (await decided(client, user_utterance="look"))["status"] == "no"
        answer = await ready(running)
        assert (answer.status_code, answer.json()["status"]) == (503, "degraded")


@given(st.lists(st.sampled_from(["miss", "answer"]), max_size=20))
def test_the_breaker_is_open_after_three_misses_without_an_answer_between(events: list[str]) -> None:
    opened: list[int] = []
    breaker = Breaker(lambda: opened.append(1))
    misses, times, was_open = 0, 0, False
    for event in events:
        misses = misses + 1 if event == "miss" else 0
        (breaker.missed if event == "miss" else breaker.answered)()
        assert breaker.open == (misses >= MISSES)
        times += breaker.open and not was_open
        was_open = breaker.open
    assert len(opened) == times
