"""A connection's life over a real socket: who comes in, how long they stay, how they leave."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from runtime.server.service import Phase
from runtime.text.prompt import Budgets, Prompt
from tests.harness.scripted import KEY, Client, Running, ScriptedClassifier, ScriptedEngine, ScriptedRenderer, serving
from tests.harness.waiting import eventually


async def closed(client: Client) -> tuple[int, str]:
    """Close code and reason, after whatever still comes."""
    await asyncio.wait_for(client.socket.wait_closed(), 5)
    assert client.socket.close_code is not None
    return client.socket.close_code, client.socket.close_reason or ""


@pytest.mark.parametrize("key", [None, "", "wrong", KEY + "x"])
async def test_a_stranger_is_told_so_and_takes_no_slot(key: str | None) -> None:
    async with serving(max_concurrent_connections=1) as running, running.client():
        async with running.client(key=key) as stranger:
            assert (await stranger.receive())["error_code"] == "authentication_failed"
            assert (await closed(stranger))[0] == 1008
        assert running.service.admission.held == 1


async def test_the_key_may_come_in_the_query_and_the_header_wins() -> None:
    async with serving(text_api_key="one, two") as running:
        async with connect(f"{running.url}?api_key=two") as socket:
            assert await Client(socket).silent()
        async with connect(f"{running.url}?api_key=two", additional_headers={"X-API-Key": "no"}) as socket:
            assert (await Client(socket).receive())["error_code"] == "authentication_failed"
        async with connect(f"{running.url}?api_key=no", additional_headers={"X-API-Key": "one"}) as socket:
            assert await Client(socket).silent()


async def test_origins_are_checked_when_a_list_is_set() -> None:
    async with serving(ws_allowed_origins="https://a.example, https://b.example") as running:
        async with running.client(origin="https://b.example") as client:
            assert await client.silent()
        async with running.client() as client:
            assert await client.silent()
        async with running.client(origin="https://evil.example") as client:
            assert (await client.receive())["error_code"] == "authentication_failed"
            assert (await closed(client))[0] == 1008


async def test_an_admitted_idle_socket_is_sent_nothing() -> None:
    async with serving() as running, running.client() as client:
        assert await client.silent(0.1)


async def test_above_capacity_the_client_is_told_the_capacity() -> None:
    async with serving(max_concurrent_connections=2, ws_handshake_acquire_timeout_s=0.05) as running:
        async with running.client(), running.client(), running.client() as third:
            frame = await third.receive()
            assert frame["error_code"] == "server_at_capacity"
            assert frame["capacity"] == {"active": 2, "max": 2, "available": 0, "at_capacity": True}
            assert (await closed(third))[0] == 1013
        await eventually(lambda: running.service.admission.held == 0)


async def test_a_slot_that_comes_free_in_time_is_taken() -> None:
    async with serving(max_concurrent_connections=1, ws_handshake_acquire_timeout_s=3) as running:
        async with running.client() as first:
            second = asyncio.create_task(connect(running.url, additional_headers={"X-API-Key": KEY}).__aenter__())
            await asyncio.sleep(0.05)
            assert not second.done()
            await first.socket.close()
            socket = await asyncio.wait_for(second, 2)
        assert running.service.admission.held == 1
        await socket.close()


async def test_a_socket_that_is_cut_gives_its_slot_back_and_aborts_its_turn() -> None:
    engine = ScriptedEngine(pause=0.01, reply=["word "] * 1000)
    async with serving(engine, ScriptedClassifier()) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="hello")
        await client.until("token")
        client.socket.transport.abort()
        await eventually(lambda: running.service.admission.held == 0 and not engine.held)


async def test_end_is_answered_and_closes_normally() -> None:
    engine = ScriptedEngine(pause=0.01, reply=["word "] * 1000)
    async with serving(engine) as running:
        for say in ('{"type": "end", "request_id": 3}', "__END__", '{"end": true}'):
            async with running.client() as client:
                await client.socket.send(say)
                frame = await client.receive()
                request = {"request_id": 3} if "request_id" in say else {}
                assert frame == {"type": "connection_closed", "reason": "client_request", **request}
                assert (await closed(client)) == (1000, "client_request")
        async with running.client() as client:
            await client.send(type="start", session_id="s1", user_utterance="hello")
            await client.until("token")
            await client.send(type="end")
            frames = await client.until("connection_closed")
            assert [frame["type"] for frame in frames][-2:] == ["done", "connection_closed"]
            assert frames[-2]["cancelled"] is True
            assert not engine.held


async def test_silence_closes_the_socket() -> None:
    async with serving(ws_idle_timeout_s=0.2, ws_close_idle_code=4001) as running:
        async with running.client() as client:
            assert await closed(client) == (4001, "idle_timeout")
        await eventually(lambda: running.service.admission.held == 0)


async def test_every_inbound_frame_and_a_streaming_turn_keep_the_socket_open() -> None:
    engine = ScriptedEngine(pause=0.2, reply=["word "] * 8)
    async with serving(engine, ws_idle_timeout_s=1) as running, running.client() as client:
        for _ in range(4):
            await asyncio.sleep(0.3)
            await client.send(type="pong")
        assert (await client.turn(user_utterance="hello"))[-1]["usage"]["completion_tokens"] == 8
        ended = asyncio.get_running_loop().time()
        assert await closed(client) == (4000, "idle_timeout")
        # Counted from the turn's end, which the client hears of a moment later.
        assert asyncio.get_running_loop().time() - ended > 0.5


async def test_ping_is_answered_by_pong_alone_and_never_limited() -> None:
    async with serving(ws_max_messages_per_window=1) as running, running.client() as client:
        for number in range(40):
            await client.send(type="ping", request_id=number)
            await client.send(type="pong")
        for number in range(40):
            assert await client.receive() == {"type": "pong", "request_id": number}
        assert await client.silent()


async def test_malformed_frames_are_answered_and_change_nothing() -> None:
    engine = ScriptedEngine(pause=0.01, reply=["word "] * 30)
    async with serving(engine, ws_max_messages_per_window=0) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="hello", request_id="r")
        await client.until("token")
        bad: list[tuple[Any, str]] = [
            (b"\x00\x01", "invalid_message"),
            ("no json", "invalid_message"),
            ("[]", "invalid_message"),
            ('{"type": "dance"}', "unknown_message_type"),
            ('{"type": "start"}', "missing_session_id"),
            ('{"type": "start", "session_id": "s1", "temperature": 9}', "temperature_out_of_range"),
        ]
        for data, _ in bad:
            await client.socket.send(data)
        frames = await client.until("done")
        errors = [frame["error_code"] for frame in frames if frame["type"] == "error"]
        assert errors == [code for _, code in bad]
        assert frames[-1]["usage"]["completion_tokens"] == 30
        await client.send(type="ping")
        assert (await client.receive())["type"] == "pong"


async def test_a_frame_above_the_size_limit_closes_with_1009() -> None:
    async with serving(ws_max_message_bytes=2048) as running:
        async with running.client() as client:
            await client.socket.send("x" * 3000)
            assert (await closed(client))[0] == 1009
        await eventually(lambda: running.service.admission.held == 0)


async def test_messages_and_cancels_have_limits_of_their_own() -> None:
    limits = {"ws_max_messages_per_window": 2, "ws_max_cancels_per_window": 1}
    async with serving(**limits) as running, running.client() as client:
        await client.send(type="dance")
        await client.turn(user_utterance="hello")
        await client.send(type="start", session_id="s1", request_id="r3")
        frame = (await client.until("error"))[-1]
        assert frame["error_code"] == "message_rate_limited"
        assert 0 < frame["retry_in"] <= 60
        assert frame["request_id"] == "r3"
        await client.send(type="cancel")
        assert (await client.receive())["cancelled"] is True
        await client.send(type="cancel", request_id="c2")
        frame = await client.receive()
        assert (frame["error_code"], frame["request_id"]) == ("cancel_rate_limited", "c2")
        await client.send(type="end")
        assert (await client.receive())["type"] == "connection_closed"


async def test_a_slow_reader_gets_joined_tokens_and_the_server_keeps_little() -> None:
    word = "0123456789" * 800
    engine = ScriptedEngine(reply=[word] * 1500)
    async with serving(engine, gen_timeout_s=30) as running, running.client(max_queue=1, max_size=None) as client:
        await client.send(type="start", session_id="s1", user_utterance="hello", sanitize_output=False)
        await eventually(lambda: engine.aborts == 0 and engine.prompts and not engine.held)
        frames = []
        while not frames or frames[-1]["type"] != "done":
            frames.append(await client.receive())
        tokens = [frame["text"] for frame in frames if frame["type"] == "token"]
        assert "".join(tokens) == word * 1500 == frames[-2]["normalized_text"]
        assert len(tokens) < 1000


async def test_cancel_and_ping_overtake_slow_messages() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with serving(engine) as running, running.client() as client:
        await client.send(type="warm_persona", persona_text="You are Mia.", request_id="w")
        await client.send(type="ping")
        assert (await client.receive())["type"] == "pong"
        await client.send(type="cancel")
        assert (await client.receive()) == {"type": "done", "cancelled": True}
        assert engine.gate is not None
        engine.gate.set()
        frame = await client.receive()
        assert (frame["type"], frame["segment"], frame["request_id"]) == ("warmed", "persona_static", "w")


class SlowRenderer(ScriptedRenderer):
    """Stands for texts that take long to tokenize."""

    def __init__(self) -> None:
        super().__init__(Budgets(persona=8))
        self.go = threading.Event()
        self.asked = threading.Event()

    def render(self, **parts: Any) -> Prompt:
        """When told to."""
        self.asked.set()
        assert self.go.wait(10)
        return super().render(**parts)

    def render_prefix(self, **parts: Any) -> list[int]:
        """When told to."""
        self.asked.set()
        assert self.go.wait(10)
        return super().render_prefix(**parts)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "warm_persona", "persona_text": "You are Mia."},
        {"type": "warm_history", "history": [], "persona_text": "You are Mia."},
        {"type": "chat_prompt", "persona_text": "You are Mia."},
        {"type": "followup", "analysis_text": "a cat"},
        {"type": "start", "session_id": "s1", "user_utterance": "hello"},
    ],
    ids=lambda message: message["type"],
)
async def test_nothing_that_takes_long_holds_up_cancel_ping_and_end(message: dict[str, Any]) -> None:
    renderer = SlowRenderer()
    async with serving(renderer=renderer) as running, running.client() as client:
        try:
            renderer.go.set()
            await client.turn(user_utterance="hello")
            renderer.go.clear()
            renderer.asked.clear()
            await client.send(**message, request_id="slow")
            await eventually(renderer.asked.is_set)
            await client.send(type="ping")
            frames = await client.until("pong")
            await client.send(type="cancel", request_id="c")
            frames += await client.until("done")
            assert frames[-1] == {"type": "done", "cancelled": True, "request_id": "c"}
            assert {frame["type"] for frame in frames} <= {"pong", "ack", "done"}
            await client.send(type="end")
            assert (await client.receive())["type"] == "connection_closed"
            assert await closed(client) == (1000, "client_request")
        finally:
            renderer.go.set()  # before the server's end, which waits for its threads


async def test_a_prefill_that_takes_too_long_is_given_up() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with serving(engine, gen_timeout_s=0.1) as running, running.client() as client:
        await client.send(type="warm_persona", persona_text="You are Mia.", request_id="w")
        frame = await client.receive()
        assert (frame["error_code"], frame["request_id"]) == ("generation_timeout", "w")


async def test_what_the_server_did_not_foresee_is_an_internal_error_without_its_text() -> None:
    async with serving(chat_prompt_update_max_per_window=1) as running, running.client() as client:
        assert running.service.sessions is not None
        running.service.sessions.open = None  # type: ignore[assignment,method-assign]
        await client.send(type="start", session_id="s1", user_utterance="hello", request_id="r")
        await client.send(type="cancel", request_id="c")
        frame = await client.receive()
        assert (frame["error_code"], frame["request_id"]) == ("internal_error", "r")
        assert "NoneType" not in str(frame)
        # The turn never began, and the cancel behind it has its answer all the same.
        assert await client.receive() == {"type": "done", "cancelled": True, "request_id": "c"}
        await client.send(type="ping")
        assert (await client.receive())["type"] == "pong"


async def test_a_limit_of_zero_is_none() -> None:
    limits = {"ws_max_messages_per_window": 0, "ws_max_cancels_per_window": 0}
    async with serving(**limits) as running, running.client() as client:
        for number in range(60):
            await client.send(type="dance", request_id=number)
            await client.send(type="cancel", request_id=number)
        frames = [await client.receive() for _ in range(120)]
    assert {frame.get("error_code") for frame in frames} == {"unknown_message_type", None}


async def status(running: Running, path: str) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.get(f"http://127.0.0.1:{running.port}{path}")


async def test_health_readiness_and_metrics() -> None:
    async with serving(classifier=ScriptedClassifier()) as running, running.client() as client:
        prompted = (await client.turn(user_utterance="look"))[-1]["usage"]["prompt_tokens"]
        await client.send(type="cancel")
        await client.receive()
        assert (await status(running, "/healthz")).status_code == 200
        assert (await status(running, "/readyz")).json()["status"] == "ready"
        text = (await status(running, "/metrics")).text
        for line in (
            'yap_turns_total{outcome="done"} 1.0',
            'yap_tool_decisions_total{status="yes"} 1.0',
            "yap_cancels_total 1.0",
            "yap_connections_active 1.0",
            "yap_connections_max 64.0",
            "yap_engine_up 1.0",
            "yap_ttft_seconds_count 1.0",
            "yap_turn_seconds_count 1.0",
            "yap_inter_token_seconds_count 1.0",
            "yap_tool_seconds_count 1.0",
            'yap_tokens_total{kind="completion"} 4.0',
            'yap_tokens_total{kind="cached"} 3.0',
            f"yap_cache_hit_ratio {3 / prompted}",
        ):
            assert line in text


async def test_while_loading_nobody_is_admitted_and_readyz_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.server.service import Service

    monkeypatch.setattr(Service, "start", lambda self: None)
    async with serving(opened=False) as running:
        answer = await status(running, "/readyz")
        assert answer.status_code == 503
        assert (answer.json()["status"], answer.json()["reason"]) == ("loading", "checking the artifact")
        assert (await status(running, "/healthz")).status_code == 200
        async with running.client() as client:
            frame = await client.receive()
            assert frame["error_code"] == "server_at_capacity"
            assert frame["capacity"]["available"] == 0
            assert (await closed(client))[0] == 1013


async def test_draining_lets_turns_finish_and_closes_with_1001() -> None:
    engine = ScriptedEngine(pause=0.02, reply=["word "] * 10)
    async with serving(engine) as running, running.client() as idle, running.client() as busy:
        await busy.send(type="start", session_id="s1", user_utterance="hello")
        await busy.until("token")
        running.service.drain()
        assert await idle.receive() == {"type": "draining", "deadline_s": 25, "reconnect": True}
        assert await closed(idle) == (1001, "draining")
        assert (await status(running, "/readyz")).status_code == 503
        await busy.send(type="start", session_id="s1", user_utterance="more", request_id="late")
        frames = await busy.until("done")
        assert frames[-1]["usage"]["completion_tokens"] == 10
        assert [f.get("request_id") for f in frames if f["type"] == "draining"] == [None]
        assert [f["request_id"] for f in frames if f.get("error_code") == "draining"] == ["late"]
        assert await closed(busy) == (1001, "draining")
        async with running.client() as late:
            assert (await late.receive())["type"] == "draining"
            assert (await closed(late))[0] == 1001
        await asyncio.wait_for(asyncio.shield(running.service.ended), 2)


async def test_a_drain_ends_at_its_deadline() -> None:
    engine = ScriptedEngine(pause=0.02, reply=["word "] * 1000)
    async with serving(engine, drain_timeout_s=0.1) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="hello")
        await client.until("token")
        running.service.drain()
        assert (await client.until("done"))[-1]["cancelled"] is True
        assert await closed(client) == (1001, "draining")
        await asyncio.wait_for(asyncio.shield(running.service.ended), 2)
        assert not engine.held


async def test_a_dead_engine_closes_every_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as running, running.client() as client:
        running.engine.dead = True
        assert await closed(client) == (1001, "engine_died")
        assert running.service.phase is Phase.DEAD
        body = (await status(running, "/readyz")).json()
        assert (body["status"], body["reason"]) == ("dead", "the engine died")


async def test_frames_on_the_wire_are_compact_json() -> None:
    async with serving() as running, running.client() as client:
        await client.socket.send('{"type":"ping"}')
        text = await client.socket.recv()
        assert text == json.dumps({"type": "pong"}, separators=(",", ":"))
