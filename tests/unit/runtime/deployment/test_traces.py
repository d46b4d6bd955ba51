"""Traces: one span a turn with its parts inside, nothing of what was said, and nothing at all where nobody asked."""

from __future__ import annotations

import http.server
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.deployment import traces
from runtime.deployment.traces import SpanMaker, TracesError, TurnFacts, TurnTimes
from runtime.wire.frames import Usage
from tests.harness.scripted import KEY, ScriptedClassifier, ScriptedEngine, serving

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra `otel` is not installed")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRETS = ("secretpersona", "secretutterance", "secretreply")


class Kept:
    """A tracer whose spans stay in memory."""

    def __init__(self) -> None:
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self.exporter = InMemorySpanExporter()
        provider = sdk.TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = SpanMaker(provider, "acme/model")

    @property
    def spans(self) -> Sequence[Any]:
        return self.exporter.get_finished_spans()

    @property
    def whole(self) -> Any:
        (found,) = [span for span in self.spans if span.name == "chat acme/model"]
        return found


@pytest.mark.parametrize("outcome", ["done", "failed", "timeout", "cancelled"])
async def test_a_turn_is_one_span_with_its_parts(outcome: str) -> None:
    kept = Kept()
    engine = ScriptedEngine(reply=["secretreply "] * 5)
    engine.fail_after = 1 if outcome == "failed" else None
    engine.pause = 0.2 if outcome in {"timeout", "cancelled"} else 0
    async with (
        serving(engine, ScriptedClassifier(), tracer=kept.tracer, gen_timeout_s=0.5) as running,
        running.client() as client,
    ):
        await client.send(
            type="start", session_id="s1", persona_text="secretpersona", user_utterance="look at secretutterance"
        )
        if outcome == "cancelled":
            await client.until("token")
            await client.send(type="cancel")
        await client.until("done")
    whole = kept.whole
    attributes = dict(whole.attributes)
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.conversation.id"] == "s1"
    assert attributes["gen_ai.usage.input_tokens"] > 0
    assert attributes["yap.outcome"] == outcome
    assert attributes.get("error.type") == traces.FAILURES.get(outcome)
    assert whole.status.is_ok is (outcome not in traces.FAILURES)
    parts = {span.name: span for span in kept.spans if span is not whole}
    assert parts.keys() == {"decide tools", "queue and prefill", "reply"}
    assert dict(parts["decide tools"].attributes) == {"gen_ai.tool.name": "take_screenshot"}
    for span in parts.values():
        assert span.parent.span_id == whole.context.span_id
        assert whole.start_time <= span.start_time <= span.end_time <= whole.end_time
    assert not any(secret in repr([span.to_json() for span in kept.spans]) for secret in SECRETS)


async def test_the_clients_own_span_is_the_parent() -> None:
    """A message's wins over the handshake's; what is no `traceparent` is ignored, as W3C wants it."""
    kept = Kept()
    other = PARENT.replace("0af7", "1111")
    async with serving(tracer=kept.tracer) as running:
        headers = {"X-API-Key": "test-key", "traceparent": other}
        from websockets.asyncio.client import connect

        from tests.harness.scripted import Client

        async with connect(running.url, additional_headers=headers) as socket:
            client = Client(socket)
            for number, mine in enumerate((PARENT, "nonsense", None)):
                await client.turn(session_id=f"s{number}", user_utterance="hello", traceparent=mine)
    found = [f"{span.context.trace_id:032x}" for span in kept.spans if span.name.startswith("chat")]
    assert found[0] == PARENT.split("-")[1]
    assert found[1] not in (PARENT.split("-")[1], other.split("-")[1])
    assert found[2] == other.split("-")[1]


@pytest.mark.parametrize("name", [b"fine", "é🦭".encode(), b"\xff", b"a\xc3", b"\xed\xa0\xbd"])
async def test_a_conversations_name_can_be_written_whatever_bytes_a_client_gave_it(name: bytes) -> None:
    kept = Kept()
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
    headers = {b"authorization": f"Bearer {KEY}".encode(), b"x-session-id": name}
    async with serving(tracer=kept.tracer) as running, httpx.AsyncClient() as http:
        answer = await http.post(
            f"http://127.0.0.1:{running.port}/v1/chat/completions", json=body, headers=list(headers.items())
        )
        assert answer.status_code == 200
    told = dict(kept.whole.attributes)["gen_ai.conversation.id"]
    assert told.encode() == name.decode("utf-8", "replace").encode()


USAGE = Usage(
    prompt_tokens=1, cached_tokens=0, completion_tokens=1, finish_reason="stop", ttft_ms=None, duration_ms=1.0
)


@given(st.text(max_size=80) | st.from_regex(traces.TRACEPARENT, fullmatch=True))
def test_any_parent_is_taken_or_ignored(traceparent: str) -> None:
    kept = Kept()
    now = time.perf_counter()
    times = TurnTimes(now, None, None, None, None, now)
    kept.tracer.turn(TurnFacts(traceparent, "s", "k", "done", (), USAGE, times))
    parts = traceparent.strip().split("-")
    taken = traces.TRACEPARENT.fullmatch(traceparent.strip()) is not None and parts[0] != "ff"
    if not taken:
        assert kept.spans == () or kept.whole.parent is None
    elif int(parts[3], 16) & 1:
        assert f"{kept.whole.context.trace_id:032x}" == parts[1]
    else:
        assert kept.spans == ()  # the client does not want its trace recorded


def test_nothing_is_imported_where_nobody_asked() -> None:
    assert traces.tracer({}) is None
    assert traces.tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_SERVICE_NAME": "x"}) is None


def test_a_missing_sdk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(TracesError, match="where OTEL_EXPORTER_OTLP_ENDPOINT is set, found none; install the extra"):
        traces.tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """An OTLP collector on loopback, which the variables name; what it was sent."""
    bodies: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,deployment.environment.name=test")
        yield bodies
        server.shutdown()


async def test_spans_reach_a_collector(collector: list[bytes]) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    tracer = traces.tracer(model="acme/model")
    async with serving(tracer=tracer) as running, running.client() as client:
        await client.turn(user_utterance="hello")
    (body,) = collector
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    named = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert named["service.name"] == "mine"
    assert named["deployment.environment.name"] == "test"
    assert "service.version" in named
    assert "chat acme/model" in {span.name for span in resource.scope_spans[0].spans}


async def test_a_collector_that_is_not_there_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    tracer = traces.tracer()
    async with serving(tracer=tracer) as running, running.client() as client:
        assert (await client.turn(user_utterance="hello"))[-1]["usage"]
        began = time.monotonic()
    assert time.monotonic() - began < 30
