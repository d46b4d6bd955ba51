"""Any body over a real socket: an answer or an error of OpenAI's shape, never a fault of ours, and every slot back."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.scripted import KEY, Running, ScriptedClassifier, ScriptedEngine, serving

T = TypeVar("T")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(max_size=12) | st.sampled_from(["look", "hello there", "", "\u0000", "🙂"])
CALL = {"id": "c", "type": "function", "function": {"name": "take_screenshot", "arguments": "{}"}}
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": TEXT}),
        st.just({"role": "assistant", "content": None, "tool_calls": [CALL]}),
        st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": st.sampled_from(["c", "d"]), "content": TEXT}),
        st.fixed_dictionaries({"role": st.just("user"), "content": JSON}),
    ),
    min_size=1,
    max_size=5,
)
TOOL = {"type": "function", "function": {"name": "take_screenshot"}}
BODIES = st.fixed_dictionaries(
    {"model": st.sampled_from(["chat", "chat", "chat", "gpt"]), "messages": MESSAGES | JSON},
    optional={
        "stream": st.booleans() | JSON,
        "stream_options": st.sampled_from([None, {}, {"include_usage": True}]),
        "temperature": st.floats(0, 2) | JSON,
        "max_tokens": st.integers(-1, 200),
        "stop": st.sampled_from([None, "here", ["thing", "it"], []]) | JSON,
        "n": st.sampled_from([1, 2, None]),
        "seed": st.integers(-1, 5),
        "tools": st.lists(st.just(TOOL) | JSON, max_size=2),
        "tool_choice": st.sampled_from(["auto", "none", "required"]) | JSON,
        "sanitize_output": st.booleans(),
        "truncation": st.sampled_from(["auto", "disabled", "other"]),
        "anything": JSON,
    },
)
REFUSALS = {400, 404}


def check(answer: httpx.Response) -> None:
    """Hold an answer against what it may be."""
    if answer.status_code != 200:
        assert answer.status_code in REFUSALS, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return
    if answer.headers["content-type"].startswith("application/json"):
        (choice,) = answer.json()["choices"]
        reason, called = choice["finish_reason"], choice["message"].get("tool_calls")
    else:
        *events, done, end = answer.text.split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        choices = [choice for event in events for choice in json.loads(event.removeprefix("data: "))["choices"]]
        assert choices[0]["delta"]["role"] == "assistant"
        (reason,) = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        called = [choice["delta"]["tool_calls"] for choice in choices if "tool_calls" in choice["delta"]]
    assert reason in {"stop", "length", "tool_calls"}
    assert (reason == "tool_calls") == bool(called)


async def nothing_is_held(running: Running) -> bool:
    """Whether every slot comes back; a request gives its own back a moment after its answer."""
    service = running.service
    for _ in range(2000):
        if not (service.admission.held or service.connections or running.engine.held):
            return True
        await asyncio.sleep(0.001)
    return False


class Server:
    """A server that goes on from example to example, in a loop of its own that runs only while it is asked."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._serving = serving(
            ScriptedEngine(), ScriptedClassifier(), http_max_requests_per_window=0, max_concurrent_connections=4
        )
        self.running = self.run(self._serving.__aenter__())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something beside the server."""
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        """End it."""
        self.run(self._serving.__aexit__(None, None, None))
        self._loop.close()


def test_any_body_is_answered_and_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server()
    address = f"http://127.0.0.1:{server.running.port}"
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}

    async def post(http: httpx.AsyncClient, body: bytes) -> None:
        check(await http.post("/v1/chat/completions", content=body))
        assert await nothing_is_held(server.running)

    async def hang_up(body: bytes, after: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.running.port)
        fields = f"Host: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{fields}".encode() + body)
        for _ in range(after):
            await asyncio.sleep(0)
        writer.close()
        assert await nothing_is_held(server.running)

    try:
        http = httpx.AsyncClient(base_url=address, headers=headers, timeout=30)

        @settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=120)
        @given(BODIES.map(json.dumps).map(str.encode) | st.binary(max_size=40))
        def answered(body: bytes) -> None:
            server.run(post(http, body))

        @settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
        @given(BODIES.map(json.dumps).map(str.encode), st.integers(0, 40))
        def hung_up(body: bytes, after: int) -> None:
            server.run(hang_up(body, after))

        answered()
        hung_up()
        server.run(http.aclose())
    finally:
        server.close()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert "Traceback" not in capsys.readouterr().out
