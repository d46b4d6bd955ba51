"""Who may ask, what the others are told, and that slots come back, whatever ends a request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry

from runtime.engines import EngineDeadError
from runtime.server.service import Phase
from tests.harness.scripted import KEY, REPLY, Running, ScriptedClassifier, ScriptedEngine, serving

HELLO: Any = [{"role": "user", "content": "hello"}]
BODY: Any = {"model": "chat", "messages": HELLO}
PATH = "/v1/chat/completions"


@asynccontextmanager
async def browser(running: Running, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that knows HTTP alone."""
    own = {"Authorization": f"Bearer {KEY}", **headers}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", headers=own) as http:
        yield http


def api(running: Running, **options: Any) -> AsyncOpenAI:
    address = f"http://127.0.0.1:{running.port}/v1"
    return AsyncOpenAI(**{"base_url": address, "api_key": KEY, "max_retries": 0, **options})


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error, in the one shape that there is."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that has no event."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float:
    value = registry.get_sample_value(name, labels)
    assert value is not None
    return value


async def all_back(running: Running) -> None:
    """Wait until nothing of any request is left."""
    service = running.service
    await until(lambda: not (service.admission.held or service.connections or service.credentials))
    assert all(service.seats.taken(principal) == 0 for principal in service.keyring.principals)
    assert not running.engine.held


# Who may ask


@pytest.mark.parametrize("path", [PATH, "/v1/models"])
async def test_a_key_comes_as_a_bearer_or_in_a_header_of_its_own(path: str) -> None:
    async with serving() as running, httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}") as http:
        for headers, right in (
            ({}, False),
            ({"Authorization": "Bearer wrong"}, False),
            ({"Authorization": f"Basic {KEY}"}, False),
            ({"X-API-Key": "wrong", "Authorization": f"Bearer {KEY}"}, False),
            ({"Authorization": f"Bearer {KEY}"}, True),
            ({"X-API-Key": KEY}, True),
        ):
            body = BODY if path == PATH else None
            answer = await http.request("POST" if body else "GET", path, json=body, headers=headers)
            assert answer.status_code == (200 if right else 401), headers
            if not right:
                assert error_of(answer)["code"] == "invalid_api_key"
        # In an address a key would be in everybody's log.
        assert (await http.get(f"/v1/models?api_key={KEY}")).status_code == 401


async def test_paths_and_methods_that_there_are_not_are_told_so() -> None:
    async with serving() as running, browser(running) as http:
        for method, path, status in (
            ("POST", "/v1/embeddings", 404),
            ("GET", "/v1/models/nobody", 404),
            ("GET", PATH, 405),
            ("POST", "/v1/models", 405),
            ("DELETE", "/v1/models/chat", 405),
            ("GET", "/v1", 404),
            ("GET", "/v1/", 404),
            ("GET", "/v1/models/", 404),
            ("POST", "/v1/chat/completions/", 404),
        ):
            answer = await http.request(method, path, content=b"{}" if method == "POST" else None)
            assert answer.status_code == status, path
            error_of(answer)
        assert (await http.get(PATH)).headers["allow"] == "POST, OPTIONS"
        # Nobody is sent to another address, which would be plain HTTP where TLS ends before the server.
        assert (await http.get("/healthz/")).status_code == 404


async def test_heads_of_what_can_be_got_are_those_of_its_answers() -> None:
    async with serving() as running, browser(running) as http:
        for path in ("/v1/models", "/v1/models/chat", "/v1/models/nobody"):
            got, head = await http.get(path), await http.head(path)
            assert head.status_code == got.status_code
            assert head.headers["content-length"] == got.headers["content-length"]
            assert not head.content
        assert (await http.head(PATH)).status_code == 405
        assert (await http.request("DELETE", "/v1/models")).headers["allow"] == "GET, HEAD, OPTIONS"


async def test_a_client_whose_address_lacks_the_prefix_is_told_so() -> None:
    async with serving() as running, api(running, base_url=f"http://127.0.0.1:{running.port}") as client:
        with pytest.raises(openai.NotFoundError, match="base_url ends with /v1") as refused:
            await client.chat.completions.create(model="chat", messages=HELLO)
    assert refused.value.code == "unknown_url"


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        (PATH, "too large", 413),
        (PATH, "in chunks", 411),
        ("/chat/completions", "fits", 404),
        ("/chat/completions", "too large", 413),
        ("/v1/%0a", "fits", 404),
        (PATH, "of a wrong type", 400),
    ],
)
async def test_every_refusal_has_an_id_and_can_be_read_by_a_page(path: str, content: str, status: int) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"{}"

    sent = {"too large": b"x" * 2049, "in chunks": pieces(), "fits": b"{}", "of a wrong type": b"[]"}[content]
    async with serving(ws_max_message_bytes=2048, ws_allowed_origins="https://app.example") as running:
        for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
            async with browser(running, Origin=origin) as http:
                preflight = await http.options(path, headers={"Access-Control-Request-Method": "POST"})
                answer = await http.post(path, content=sent)
            assert answer.headers["x-request-id"].startswith("req_")
            assert answer.headers["vary"] == "origin"
            assert (answer.headers.get("access-control-allow-origin") == origin) == allowed
            if allowed:
                assert preflight.status_code == 204
                assert answer.status_code == status
                error_of(answer)
                shown = answer.headers["access-control-expose-headers"].split(", ")
                assert {"x-request-id", "retry-after", "x-should-retry"} == set(shown)


async def test_a_body_in_another_encoding_is_refused_as_what_it_is() -> None:
    async with serving() as running, browser(running) as http:
        for encoding, status in (("gzip", 415), ("br, gzip", 415), ("Identity", 200)):
            answer = await http.post(PATH, json=BODY, headers={"Content-Encoding": encoding})
            assert answer.status_code == status
        assert error_of(await http.post(PATH, json=BODY, headers={"Content-Encoding": "gzip"}))["code"] == (
            "unsupported_encoding"
        )


async def test_a_body_that_is_too_large_or_has_no_length_is_refused_in_the_same_shape() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield json.dumps(BODY).encode()

    async with serving(ws_max_message_bytes=2048) as running, browser(running) as http:
        large = await http.post(PATH, json={**BODY, "user": "x" * 2048})
        chunked = await http.post(PATH, content=pieces())
        fits = await http.post(PATH, json={**BODY, "user": "x" * 1024})
    assert (large.status_code, error_of(large)["code"]) == (413, "request_too_large")
    assert (chunked.status_code, error_of(chunked)["code"]) == (411, "length_required")
    assert fits.status_code == 200


async def test_browsers_may_ask_from_where_they_may_connect() -> None:
    async with serving(ws_allowed_origins="https://app.example") as running:
        async with browser(running, Origin="https://app.example") as http:
            asked = {
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os, bad name",
            }
            preflight = await http.options(PATH, headers=asked)
            answer = await http.post(PATH, json=BODY)
            wrong = await http.post(PATH, json={**BODY, "n": 2})
        async with browser(running, Origin="https://evil.example") as http:
            refused = await http.post(PATH, json=BODY)
    assert preflight.status_code == 204
    assert not {"content-length", "content-type", "transfer-encoding"} & set(preflight.headers)
    assert preflight.headers["access-control-allow-headers"] == "authorization, content-type, x-stainless-os"
    for told in (preflight, answer, wrong):
        assert told.headers["access-control-allow-origin"] == "https://app.example"
        assert told.headers["vary"] == "origin"
    assert refused.status_code == 403
    assert error_of(refused)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in refused.headers


async def test_the_door_can_be_closed() -> None:
    async with serving(openai_api=False) as running, browser(running) as http:
        assert (await http.get("/v1/models")).status_code == 404
        assert (await http.post(PATH, json=BODY)).status_code == 413  # no path takes a body then


async def test_a_model_has_the_names_that_the_operator_gives_it() -> None:
    async with serving(served_model_names="mia, org/mia") as running, api(running) as client:
        assert [model.id async for model in client.models.list()] == ["mia", "org/mia"]
        assert (await client.models.retrieve("org/mia")).id == "org/mia"
        answer = await client.chat.completions.create(model="org/mia", messages=HELLO)
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="chat", messages=HELLO)
    assert answer.model == "org/mia"


# Who is admitted


async def test_while_the_server_loads_it_says_when_to_come_again() -> None:
    async with serving() as running, browser(running) as http:
        running.service.phase = Phase.LOADING
        for answer in (await http.get("/v1/models"), await http.post(PATH, json=BODY)):
            assert (answer.status_code, error_of(answer)["code"]) == (503, "loading")
            assert int(answer.headers["retry-after"]) >= 1


async def test_whoever_asks_a_dead_server_is_told_of_the_engine() -> None:
    async with serving() as running, browser(running) as http:
        running.service.phase = Phase.DEAD
        for answer in (await http.get("/v1/models"), await http.post(PATH, json=BODY)):
            assert (answer.status_code, error_of(answer)["code"]) == (503, "engine_died")


async def test_slots_are_the_sockets_own() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    assert engine.gate is not None
    options: Any = {"max_concurrent_connections": 1, "ws_handshake_acquire_timeout_s": 0.01}
    async with serving(engine, **options) as running, browser(running) as http:
        async with running.client() as socket:
            full = await http.post(PATH, json=BODY)
            await socket.send(type="end")
            await socket.until("connection_closed")
        await all_back(running)
        asking = asyncio.ensure_future(http.post(PATH, json=BODY))
        await until(lambda: engine.held)
        async with running.client() as socket:
            assert (await socket.receive())["error_code"] == "server_at_capacity"
        engine.gate.set()
        assert (await asking).status_code == 200
        await all_back(running)
    assert (full.status_code, error_of(full)["code"]) == (429, "server_at_capacity")
    assert error_of(full)["type"] == "rate_limit_error"
    assert int(full.headers["retry-after"]) >= 1


async def test_quotas_of_a_key_hold_here_too() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    assert engine.gate is not None
    async with (
        serving(engine, max_connections_per_key=1, text_api_key=f"{KEY},other") as running,
        browser(running) as http,
        browser(running, Authorization="Bearer other") as another,
    ):
        asking = asyncio.ensure_future(http.post(PATH, json=BODY))
        await until(lambda: engine.held)
        refused = await http.post(PATH, json=BODY)
        engine.gate.set()
        assert (await asking).status_code == (await another.post(PATH, json=BODY)).status_code == 200
    assert (refused.status_code, error_of(refused)["code"]) == (429, "connection_quota_exceeded")


@pytest.mark.parametrize("limits", [{"max_connections_per_key": 2}, {"max_concurrent_connections": 2}])
async def test_no_more_is_tokenized_at_once_than_a_key_may_have_answered(limits: dict[str, int]) -> None:
    checked, gate = 0, asyncio.Event()

    async def utterance_budget(*_: Any) -> int:
        nonlocal checked
        checked += 1
        await gate.wait()
        return 500

    limit: Any = {**limits, "ws_handshake_acquire_timeout_s": 0.1}
    async with serving(**limit) as running, browser(running) as http:
        assert running.service.deployment is not None
        chat = running.service.deployment.chat
        assert chat is not None
        chat.utterance_budget = utterance_budget  # type: ignore[method-assign]
        asking = [asyncio.ensure_future(http.post(PATH, json=BODY)) for _ in range(2)]
        await until(lambda: checked == 2)
        refused = [await http.post(PATH, json=BODY) for _ in range(3)]
        assert checked == 2
        gate.set()
        told = [(answer.status_code, error_of(answer)["code"]) for answer in await asyncio.gather(*asking)]
        await all_back(running)
    assert told == [(400, "context_length_exceeded")] * 2
    assert {answer.status_code for answer in refused} == {429}


@pytest.mark.parametrize(
    "limits",
    [
        {"ws_max_messages_per_window": 3, "max_concurrent_connections": 1},
        {"ws_max_messages_per_window": 1, "max_concurrent_connections": 3},
        {"ws_max_messages_per_window": 1, "max_connections_per_key": 3},
        {"http_max_requests_per_window": 3},
    ],
)
async def test_requests_of_a_key_are_counted_also_the_wrong_ones(limits: dict[str, int]) -> None:
    limit: Any = {**limits, "text_api_key": f"{KEY},other"}
    async with serving(**limit) as running, browser(running) as http:
        statuses = [(await http.post(PATH, json=body)).status_code for body in (BODY, {"n": 2}, BODY)]
        refused = await http.post(PATH, json=BODY)
        assert (await http.get("/v1/models")).status_code == 200
        async with browser(running, Authorization="Bearer other") as another:
            assert (await another.post(PATH, json=BODY)).status_code == 200
        # A socket counts for itself: its client did nothing yet.
        async with running.client() as socket:
            assert (await socket.turn(user_utterance="hi"))[-1]["type"] == "done"
    assert statuses == [200, 400, 200]
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60


async def test_the_client_comes_again_by_itself_after_a_full_moment() -> None:
    options: Any = {"http_max_requests_per_window": 1, "ws_message_window_seconds": 0.2}
    async with serving(**options) as running, api(running, max_retries=3) as client:
        for _ in range(2):
            await client.chat.completions.create(model="chat", messages=HELLO)
    assert sample(running.service.metrics.registry, "yap_http_requests_total", status="429") >= 1


# What ends a reply


@pytest.mark.parametrize("stream", [False, True])
async def test_a_drain_lets_running_replies_finish_and_takes_no_new_ones(stream: bool) -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    assert engine.gate is not None
    async with serving(engine) as running, api(running) as client:
        asking = asyncio.ensure_future(client.chat.completions.create(model="chat", messages=HELLO, stream=stream))
        await until(lambda: engine.held)
        running.service.drain()
        with pytest.raises(openai.InternalServerError) as refused:
            await client.chat.completions.create(model="chat", messages=HELLO)
        engine.gate.set()
        answer: Any = await asking
        if stream:
            said = "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
        else:
            said = answer.choices[0].message.content
        assert said == "".join(REPLY)
        await running.service.ended
    assert (refused.value.status_code, refused.value.code) == (503, "draining")
    assert refused.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_drain_does_not_wait_for_ever(stream: bool) -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with serving(engine, drain_timeout_s=0.05) as running, api(running) as client:
        asking = asyncio.ensure_future(client.chat.completions.create(model="chat", messages=HELLO, stream=stream))
        await until(lambda: engine.held)
        running.service.drain()
        with pytest.raises(openai.InternalServerError) as refused:
            await asking
        await running.service.ended
        await all_back(running)
    assert (refused.value.status_code, refused.value.code) == (503, "draining")


async def test_a_stream_that_breaks_off_says_why_and_is_not_done() -> None:
    class Halting(ScriptedEngine):
        """Says two words, then waits for ever."""

        async def generate(self, prompt: Any, sampling: Any, on_delta: Any, cache_salt: Any = None) -> None:
            def each(delta: Any) -> None:
                on_delta(delta)
                if delta.text == REPLY[1]:
                    self.gate = asyncio.Event()

            await super().generate(prompt, sampling, each, cache_salt)

    engine = Halting()
    async with serving(engine) as running, browser(running) as http:
        async with http.stream("POST", PATH, json={**BODY, "stream": True}) as answer:
            lines = answer.aiter_lines()
            async for line in lines:
                if REPLY[1] in line:
                    break
            for completion in list(running.service.connections):
                running.service.close_removed(completion)
            rest = [line async for line in lines if line]
        await all_back(running)
    assert answer.status_code == 200
    (last,) = rest
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("words", [0, 2])
async def test_a_failure_of_the_engine_tells_nothing_of_it(stream: bool, words: int) -> None:
    engine = ScriptedEngine(fail_after=words, pause=0.01)
    async with serving(engine) as running, api(running) as client:

        async def ask() -> None:
            answer: Any = await client.chat.completions.create(model="chat", messages=HELLO, stream=stream)
            [chunk async for chunk in answer]

        with pytest.raises(openai.APIError) as failed:
            await ask()
        await all_back(running)
    assert failed.value.code == "generation_failed"
    assert "secret" not in str(failed.value)
    assert isinstance(failed.value, openai.InternalServerError) == (not (stream and words))


async def test_a_fault_of_ours_is_an_error_of_theirs_shape_and_told_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving() as running, browser(running) as http:

        def fail(body: bytes) -> None:
            raise ZeroDivisionError("secret")

        running.service.requests.read = fail  # type: ignore[assignment, method-assign]
        answer = await http.post(PATH, json=BODY)
        await all_back(running)
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "request_failed" in capsys.readouterr().out


async def test_a_reply_that_takes_too_long_is_not_asked_for_again() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with serving(engine, gen_timeout_s=0.05) as running, api(running, max_retries=5) as client:
        with pytest.raises(openai.InternalServerError) as failed:
            await client.chat.completions.create(model="chat", messages=HELLO)
        await all_back(running)
    assert (failed.value.status_code, failed.value.code) == (504, "generation_timeout")
    assert len(engine.prompts) == 1


async def test_the_engines_death_is_told_and_ends_the_server() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with serving(engine) as running, api(running) as client:
        asking = asyncio.ensure_future(client.chat.completions.create(model="chat", messages=HELLO))
        await until(lambda: engine.held)
        running.service.died(EngineDeadError("gone"))
        with pytest.raises(openai.InternalServerError) as failed:
            await asking
        with pytest.raises(EngineDeadError):
            await running.service.ended
        assert running.service.phase is Phase.DEAD
    assert (failed.value.status_code, failed.value.code) == (503, "engine_died")


async def test_the_clients_own_timeout_aborts_in_the_engine() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with serving(engine) as running, api(running) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="chat", messages=HELLO, timeout=0.2)
        await all_back(running)
    assert engine.aborts == 1


async def test_a_client_that_hung_up_before_it_was_admitted_begins_nothing() -> None:
    async with serving(max_concurrent_connections=1, ws_handshake_acquire_timeout_s=30) as running:
        async with running.client() as socket:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            body = json.dumps(BODY).encode()
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await until(lambda: running.service.admission._queue)
            writer.close()
            await until(lambda: any(one.ended for one in running.service.sockets._all))
            await socket.send(type="end")
            await socket.until("connection_closed")
        await all_back(running)
    assert await reader.read() == b""
    assert running.engine.prompts == []


async def test_a_client_that_does_not_read_costs_one_reply_and_loses_its_slot() -> None:
    """Text that waits is joined; and whoever leaves a whole answer lying is not waited for."""
    engine = ScriptedEngine(reply=["word " * 40] * 2000)
    async with serving(engine, ws_idle_timeout_s=0.2) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=2**14)
        body = json.dumps({**BODY, "stream": True}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await until(lambda: engine.prompts)
        await all_back(running)
        writer.close()
        assert reader.exception() is None
    assert engine.most_held == 1


async def test_a_drain_does_not_wait_for_a_client_that_does_not_read() -> None:
    engine = ScriptedEngine(reply=["word " * 400] * 2000)  # more than sockets hold
    async with serving(engine, drain_timeout_s=0.1) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=2**14)
        body = json.dumps({**BODY, "stream": True}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await until(lambda: engine.prompts and not engine.held)
        assert running.service.admission.held == 1
        running.service.drain()
        await asyncio.wait_for(all_back(running), 60)  # long before `ws_idle_timeout_s`
        writer.close()
        assert reader.exception() is None


async def test_a_slow_reader_gets_all_of_it_in_fewer_pieces() -> None:
    words = ["x" * 20_000] * 1000  # more than sockets hold
    async with (
        serving(ScriptedEngine(reply=words)) as running,
        browser(running) as http,
        http.stream("POST", PATH, json={**BODY, "stream": True}, timeout=30) as answer,
    ):
        await until(lambda: not running.engine.held and running.engine.prompts)
        chunks = [line async for line in answer.aiter_lines() if line.startswith("data: {")]
    said = [choice["delta"].get("content", "") for line in chunks for choice in json.loads(line[6:])["choices"]]
    assert "".join(said) == "".join(words)
    assert len(chunks) < len(words)


# What it is counted as


async def test_requests_are_counted_by_their_status_and_turns_as_everywhere() -> None:
    async with serving() as running, browser(running) as http:
        await http.post(PATH, json=BODY)
        await http.post(PATH, json={**BODY, "n": 2})
        await http.get("/v1/models", headers={"Authorization": "Bearer no"})
        registry = running.service.metrics.registry
        counted = {
            status: sample(registry, "yap_http_requests_total", status=status)
            for status in ("200", "400", "401", "429", "503")
        }
        assert counted == {"200": 1, "400": 1, "401": 1, "429": 0, "503": 0}
        assert sample(registry, "yap_turns_total", outcome="done") == 1
        assert sample(registry, "yap_tokens_total", kind="completion") == len(REPLY)


async def test_each_answer_has_an_id_that_the_log_knows(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(log_turns=True) as running, browser(running) as http:
        good = await http.post(PATH, json=BODY)
        wrong = await http.post(PATH, json={**BODY, "logprobs": True})
    told = capsys.readouterr().out
    for answer in (good, wrong):
        assert answer.headers["x-request-id"] in told
    assert "unsupported_value" in told
    assert "hello" not in told


# Conversations that are long


async def test_the_oldest_messages_go_unless_nothing_may() -> None:
    async with serving() as running, api(running) as client:
        chat = running.service.deployment
        assert chat is not None
        assert chat.chat is not None

        async def fits(*_: Any) -> bool:
            return False

        chat.chat.history_fits = fits  # type: ignore[method-assign]
        await client.chat.completions.create(model="chat", messages=HELLO)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="chat", messages=HELLO, extra_body={"truncation": "disabled"})
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


async def test_instructions_and_the_last_message_are_never_cut() -> None:
    long = " ".join(["word"] * 600)
    async with serving() as running, api(running) as client:
        for messages in (
            [{"role": "user", "content": long}],
            [{"role": "system", "content": " ".join(["word"] * 3000)}, *HELLO],
        ):
            sent: Any = messages
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(model="chat", messages=sent)
            assert refused.value.code == "context_length_exceeded"
        sent = [{"role": "user", "content": long}, {"role": "assistant", "content": "so?"}, *HELLO]
        await client.chat.completions.create(model="chat", messages=sent)
    assert len(running.engine.prompts) == 1


# Without a chat model


async def test_a_server_of_tools_alone_decides_and_says_nothing() -> None:
    tools: Any = [{"type": "function", "function": {"name": "take_screenshot"}}]
    async with serving(classifier=ScriptedClassifier(), chat=False) as running, api(running) as client:
        look: Any = [{"role": "user", "content": "look"}]
        yes = await client.chat.completions.create(model="chat", messages=look, tools=tools)
        no = await client.chat.completions.create(model="chat", messages=HELLO, tools=tools)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="chat", messages=HELLO)
    assert yes.choices[0].finish_reason == "tool_calls"
    assert (no.choices[0].finish_reason, no.choices[0].message.content) == ("stop", "")
    assert refused.value.code == "chat_not_deployed"
