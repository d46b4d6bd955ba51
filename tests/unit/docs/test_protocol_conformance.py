"""A client that speaks `docs/protocol.md` line by line, in the page's order, and is told what the page says.

What is said of a turn's inner order has tests of its own (`tests/unit/runtime/turns`); here are the lines on which a
client's author relies without asking: what every message is answered by, in every state of server and session.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.harness.scripted import KEY, REPLY, Client, Running, ScriptedClassifier, ScriptedEngine, serving
from tests.harness.waiting import eventually

LONG = ["word "] * 400

# One of each message that asks for something, as small as the page allows.
MESSAGES: dict[str, dict[str, Any]] = {
    "start": {"session_id": "s1", "user_utterance": "hello"},
    "followup": {"analysis_text": "a cat"},
    "chat_prompt": {"persona_text": "You are Mia."},
    "warm_persona": {"persona_text": "You are Mia."},
    "warm_history": {"history": []},
    "cancel": {},
    "end": {},
    "ping": {},
}
WORK = ("start", "followup", "chat_prompt", "warm_persona", "warm_history")


async def closed(client: Client) -> tuple[int, str]:
    """Close code and reason."""
    await asyncio.wait_for(client.socket.wait_closed(), 10)
    assert client.socket.close_code is not None
    return client.socket.close_code, client.socket.close_reason or ""


async def answer(client: Client, kind: str, **fields: Any) -> dict[str, Any]:
    """The first frame that carries the `request_id` of a message."""
    await client.send(**{"type": kind, **MESSAGES[kind], "request_id": f"{kind}-id", **fields})
    while (frame := await client.receive())["request_id" if "request_id" in frame else "type"] != f"{kind}-id":
        pass
    return frame


def refused(frame: dict[str, Any], kind: str, code: str) -> None:
    """A refusal has the shape that the page gives it."""
    assert frame["error_code"] == code, frame
    assert frame["message"]
    if kind == "chat_prompt":
        assert (frame["type"], frame["for"], frame["ok"]) == ("ack", "chat_prompt", False)
        assert frame["code"] >= 400
    else:
        assert frame["type"] == "error"


@asynccontextmanager
async def talking(**options: Any) -> AsyncIterator[tuple[Running, Client]]:
    """A client whose turn `old` streams and does not end by itself."""
    engine = ScriptedEngine(reply=LONG, pause=0.01)
    async with serving(engine, gen_timeout_s=60, **options) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="one", request_id="old")
        await client.until("token")
        yield running, client


# Connecting


@pytest.mark.parametrize("path", ["/", "/wss", "/ws/", "/ws/x", "/healthz"])
async def test_another_path_is_404(path: str) -> None:
    async with serving() as running:
        with pytest.raises(InvalidStatus) as refusal:
            await connect(f"ws://127.0.0.1:{running.port}{path}", additional_headers={"X-API-Key": KEY})
        assert refusal.value.response.status_code == 404


async def test_the_path_without_a_handshake_is_426() -> None:
    async with serving() as running, httpx.AsyncClient() as http:
        found = await http.get(f"http://127.0.0.1:{running.port}/ws")
        assert (found.status_code, found.headers["upgrade"]) == (426, "websocket")


# What a client sends


async def test_user_identity_is_kept_and_echoed_where_it_was_ever_set() -> None:
    async with serving() as running, running.client() as client:
        assert "user_identity" not in (await client.turn(user_utterance="a"))[0]
        assert (await client.turn(user_utterance="a", user_identity="Non-Binary"))[0]["user_identity"] == "non-binary"
        assert (await client.turn(user_utterance="a"))[0]["user_identity"] == "non-binary"


async def test_a_followup_takes_no_session_from_another_connection() -> None:
    async with talking() as (running, owner), running.client() as other:
        refused(await answer(other, "followup", session_id="s1"), "followup", "no_active_session")
        refused(await answer(other, "chat_prompt", session_id="s1"), "chat_prompt", "no_active_session")
        assert (await owner.receive())["type"] == "token", "the owner's turn goes on"
        await owner.send(type="cancel")
        await owner.until("done")
        assert (await answer(owner, "followup"))["for"] == "followup"


async def test_a_followup_about_another_session_leaves_the_connection_its_own() -> None:
    async with serving() as running, running.client() as client:
        await client.turn(session_id="s1", user_utterance="one")
        await client.turn(session_id="s2", user_utterance="two")
        assert (await answer(client, "followup", session_id="s1"))["session_id"] == "s1"
        await client.until("done")
        assert (await answer(client, "followup"))["session_id"] == "s2"


async def test_after_a_reconnect_a_followup_goes_on_without_a_start_and_makes_the_session_its_own() -> None:
    async with serving() as running:
        async with running.client() as client:
            await client.turn(user_utterance="one")
        await eventually(lambda: not running.service.connections)
        async with running.client() as client:
            refused(await answer(client, "followup"), "followup", "no_active_session")
            assert (await answer(client, "followup", session_id="s1"))["for"] == "followup"
            await client.until("done")
            assert (await answer(client, "followup"))["session_id"] == "s1"
            await client.until("done")
            refused(await answer(client, "followup", session_id="s9"), "followup", "no_active_session")


async def test_an_empty_history_is_warmed_with_what_precedes_it() -> None:
    async with serving(ScriptedEngine(block=1)) as running, running.client() as client:
        assert (await answer(client, "warm_history", persona_text="You are Mia."))["tokens"] == 4
        assert (await answer(client, "warm_history"))["tokens"] == 0
        await client.send(type="warm_history", persona_text="You are Mia.")
        assert (await client.receive())["error_code"] == "missing_history"


async def test_a_history_is_warmed_with_the_persona_of_the_session_that_is_named_or_refused() -> None:
    async with serving(ScriptedEngine()) as running, running.client() as owner, running.client() as other:
        await owner.turn(user_utterance="a", persona_text="You are Mia.")
        assert (await answer(other, "warm_history", session_id="s1"))["tokens"] == 4
        assert (await answer(other, "warm_history"))["tokens"] == 0
        refused(await answer(other, "warm_history", session_id="unknown"), "warm_history", "no_active_session")
        assert (await answer(other, "warm_history", session_id="unknown", persona_text="Mia"))["tokens"] == 2


async def test_warmed_counts_whole_blocks_alone() -> None:
    async with serving(ScriptedEngine(block=3)) as running, running.client() as client:
        assert (await answer(client, "warm_persona", persona_text="You are Mia."))["tokens"] == 3


# Sampling


async def test_max_tokens_stop_and_seed_reach_the_engine_and_stay_the_sessions_default() -> None:
    async with serving(max_out=33) as running, running.client() as client:
        await client.turn(user_utterance="a", sampling={"max_tokens": "7", "stop": ["\n", "User:"], "seed": 2**63 - 1})
        await client.turn(user_utterance="b", max_tokens=33, stop=[])
        await client.send(type="followup", analysis_text="a cat", sampling={"seed": 5})
        await client.until("done")
        await client.turn(user_utterance="c", session_id="other")
    found = [(each.max_tokens, each.stop, each.seed) for each in running.engine.samplings]
    assert found == [
        (7, ("\n", "User:"), 2**63 - 1),
        (33, (), 2**63 - 1),
        (33, (), 5),
        (33, (), None),
    ]


@pytest.mark.parametrize("classifier", [None, ScriptedClassifier()])
async def test_a_reply_ends_before_the_stop_text_that_it_says(classifier: ScriptedClassifier | None) -> None:
    engine = ScriptedEngine(reply=["one", " t", "wo", " three"])
    async with serving(engine, classifier) as running, running.client() as client:
        frames = await client.turn(user_utterance="a", stop=["two", "x"], sanitize_output=False)
        assert frames[-2]["normalized_text"] == "one "
        assert frames[-1]["usage"]["finish_reason"] == "stop"
        assert frames[-1]["usage"]["completion_tokens"] == 3
        assert (engine.aborts, engine.held) == (1, set())
        frames = await client.turn(user_utterance="a", stop=["three x"], sanitize_output=False)
        assert frames[-2]["normalized_text"] == "one two three"


@pytest.mark.parametrize(
    ("sampling", "code"),
    [
        ({"max_tokens": 0}, "max_tokens_out_of_range"),
        ({"max_tokens": 34}, "max_tokens_out_of_range"),
        ({"max_tokens": 1.5}, "invalid_max_tokens"),
        ({"max_tokens": True}, "invalid_max_tokens"),
        ({"seed": -1}, "seed_out_of_range"),
        ({"seed": 2**64}, "seed_out_of_range"),
        ({"seed": "x"}, "invalid_seed"),
        ({"stop": "User:"}, "invalid_stop"),
        ({"stop": ["a"] * 5}, "invalid_stop"),
        ({"stop": ["a" * 65]}, "invalid_stop"),
        ({"stop": [""]}, "invalid_stop"),
        ({"stop": [1]}, "invalid_stop"),
    ],
)
async def test_sampling_out_of_bounds_is_told(sampling: dict[str, Any], code: str) -> None:
    async with serving(max_out=33) as running, running.client() as client:
        refused(await answer(client, "start", sampling=sampling), "start", code)
        assert not running.engine.prompts


# What the server sends


async def test_every_refusal_of_a_chat_prompt_is_its_ack() -> None:
    kind = "chat_prompt"
    limits = {"chat_prompt_update_max_per_window": 1, "ws_max_messages_per_window": 7}
    async with serving(**limits) as running, running.client() as client:
        refused(frame := await answer(client, kind), kind, "no_active_session")
        assert frame["code"] == 404
        await client.turn(user_utterance="a")
        refused(frame := await answer(client, kind, persona_text=1), kind, "invalid_persona_text")
        assert (frame["code"], frame["field"], frame["found"]) == (400, "persona_text", "1")
        refused(frame := await answer(client, kind, persona_text="a " * 3000), kind, "chat_prompt_too_long")
        assert frame["code"] == 413
        assert (await answer(client, kind))["code"] == 200
        assert (await answer(client, kind))["code"] == 204
        refused(frame := await answer(client, kind, persona_text="b"), kind, "chat_prompt_rate_limited")
        assert (frame["code"], frame["retry_in"] > 0) == (429, True)
        for persona in ("c", 1):
            refused(frame := await answer(client, kind, persona_text=persona), kind, "message_rate_limited")
            assert (frame["code"], frame["retry_in"] > 0) == (429, True)
    async with serving(chat=False, classifier=ScriptedClassifier()) as running, running.client() as client:
        refused(frame := await answer(client, kind), kind, "chat_not_deployed")
        assert frame["code"] == 501


@pytest.mark.parametrize("kind", WORK)
async def test_while_draining_a_message_is_refused_and_none_hangs(kind: str) -> None:
    async with talking() as (running, client):
        running.service.drain()
        draining = (await client.until("draining"))[-1]
        assert (draining["deadline_s"], draining["reconnect"]) == (25, True)
        refused(await answer(client, kind), kind, "draining")
        assert (await answer(client, "ping"))["type"] == "pong"
        assert (await answer(client, "cancel"))["cancelled"] is True
        assert await closed(client) == (1001, "draining")


async def test_whoever_comes_while_the_server_drains_is_told_the_time_that_is_left() -> None:
    async with talking() as (running, client):
        running.service.drain()
        async with running.client() as late:
            frame = await late.receive()
            assert frame["type"] == "draining"
            assert 20 <= frame["deadline_s"] <= 25
            assert frame["reconnect"] is True
            assert await closed(late) == (1001, "draining")
        await client.send(type="cancel")
        await client.until("done")


async def test_whoever_waits_for_a_slot_when_the_drain_begins_is_told_before_the_close() -> None:
    limits = {"max_concurrent_connections": 1, "ws_handshake_acquire_timeout_s": 30}
    async with talking(**limits) as (running, client):
        waiting = asyncio.ensure_future(connect(running.url, additional_headers={"X-API-Key": KEY}).__aenter__())
        await eventually(lambda: running.service.admission._queue)
        running.service.drain()
        await client.until("draining")
        await client.send(type="cancel")
        assert await closed(client) == (1001, "draining")
        late = Client(await asyncio.wait_for(waiting, 10))
        assert (await late.receive())["type"] == "draining"
        assert await closed(late) == (1001, "draining")


# Cancel and barge-in


async def test_a_cancel_above_its_limit_stops_the_turn_all_the_same() -> None:
    async with talking(ws_max_cancels_per_window=1) as (running, client):
        await client.send(type="cancel", request_id="c1")
        await client.until("done")
        await client.send(type="start", session_id="s1", user_utterance="two", request_id="new")
        await client.until("token")
        refused(await answer(client, "cancel"), "cancel", "cancel_rate_limited")
        assert (await client.until("done"))[-1] == {"type": "done", "cancelled": True, "request_id": "new"}
        assert not running.engine.held


@pytest.mark.parametrize("kind", ["start", "followup"])
async def test_a_barge_in_above_the_message_limit_stops_the_old_turn(kind: str) -> None:
    async with talking(ws_max_messages_per_window=1) as (running, client):
        refused(frame := await answer(client, kind), kind, "message_rate_limited")
        assert frame["retry_in"] > 0
        assert (await client.until("done"))[-1] == {"type": "done", "cancelled": True, "request_id": "old"}
        assert not running.engine.held


@pytest.mark.parametrize("kind", ["chat_prompt", "warm_persona", "warm_history", "ping"])
async def test_nothing_else_above_the_limit_stops_a_turn(kind: str) -> None:
    async with talking(ws_max_messages_per_window=1) as (_, client):
        await answer(client, kind)
        assert (await client.receive())["type"] == "token"


# What always holds: every message is answered

STATES = st.sampled_from(["new", "started", "talking", "limited", "draining"])
# Fields as a client might get them wrong, and as it gets them right.
FIELDS = st.dictionaries(
    st.sampled_from(["session_id", "persona_text", "history", "analysis_text", "seed", "stop", "max_tokens"]),
    st.sampled_from(["s1", "unknown", "", 5, None, [], ["a"]]),
    max_size=3,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STATES, st.lists(st.tuples(st.sampled_from([*WORK, "cancel", "ping"]), FIELDS), min_size=1, max_size=4))
def test_every_message_in_every_state_has_its_answer(state: str, said: list[tuple[str, dict[str, Any]]]) -> None:
    async def converse() -> None:
        engine = ScriptedEngine(pause=0.001, reply=LONG if state in ("talking", "draining") else REPLY)
        limit = 1 if state == "limited" else 0
        async with serving(engine, ws_max_messages_per_window=limit) as running, running.client() as client:
            if state != "new":
                await client.send(type="start", session_id="s1", user_utterance="one", request_id="first")
                await client.until("token" if state in ("talking", "draining") else "done")
            if state == "draining":
                running.service.drain()
            for number, (kind, fields) in enumerate(said):
                await client.send(**{"type": kind, **MESSAGES[kind], **fields, "request_id": number})
            answers: dict[int, dict[str, Any]] = {}
            while len(answers) < len(said):
                frame = await client.receive(10)
                if isinstance(frame.get("request_id"), int):
                    answers.setdefault(frame["request_id"], frame)
            for number, (kind, _) in enumerate(said):
                frame = answers[number]
                if "error_code" in frame:
                    refused(frame, kind, frame["error_code"])
                    continue
                expected = {"cancel": "done", "ping": "pong", "warm_persona": "warmed", "warm_history": "warmed"}
                assert frame["type"] == expected.get(kind, "ack"), (kind, frame)

    asyncio.run(converse())
