"""OpenTelemetry: one span a turn, with its parts as children, made when the turn has ended.

Nothing of it lies on a turn's way: a turn notes its times anyway, and the spans are made of these. Names and
attributes are those of the GenAI conventions (open-telemetry/semantic-conventions-genai, in development). Nothing that
was said is in them. The exporter, and all of its `OTEL_*` variables, are the SDK's own.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from runtime import __version__
from runtime.wire.frames import Usage

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

# Any of these, set to something, asks for traces.
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
MISSING = (
    "expected the OpenTelemetry SDK where {name} is set, found none; install the extra `otel` "
    "(the vllm and cpu lanes have it), or unset the variable"
)
# W3C Trace Context. What does not look like this is ignored, as its standard wants.
TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
FAILURES = {"failed": "generation_failed", "timeout": "generation_timeout"}


@dataclass(frozen=True, slots=True)
class TurnTimes:
    """When what happened, on `time.perf_counter`'s clock, in seconds; none where it did not.

    Attributes:
        received: the message was read.
        decided_from, decided: the classifier was asked, and its answer was known.
        asked: the engine was given the prompt.
        first_token: the first spoken token came.
        ended: `done` was sent.
    """

    received: float
    decided_from: float | None
    decided: float | None
    asked: float | None
    first_token: float | None
    ended: float


@dataclass(frozen=True, slots=True)
class TurnFacts:
    """What a span says of a turn.

    Attributes:
        traceparent: the client's span, as W3C writes it; the turn's own trace where there is none.
        conversation: the session's id.
        key: the name of the key's holder.
        outcome: done, cancelled, failed or timeout.
        tools: that were asked for.
        usage: of the turn.
        times: of its parts.
        stream: whether the reply was sent as it came.
    """

    traceparent: str | None
    conversation: str
    key: str
    outcome: str
    tools: tuple[str, ...]
    usage: Usage
    times: TurnTimes
    stream: bool = True


class Tracer(Protocol):
    """Takes what is known of turns that ended."""

    def turn(self, facts: TurnFacts) -> None:
        """Make a turn's spans. Never waits: they are exported by a thread."""

    def close(self) -> None:
        """Export what is left, for a few seconds at most."""


class TracesError(Exception):
    """Traces are asked for, and cannot be had. The message says what to do."""

    text_may_be_logged = True


def tracer(environment: Mapping[str, str] = os.environ, *, model: str = "") -> Tracer | None:
    """Make what exports traces, where a variable names a collector; none elsewhere.

    Args:
        model: the served model's name.

    Raises:
        TracesError: the SDK is not installed.
    """
    name = next((name for name in ENDPOINTS if environment.get(name)), None)
    if name is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise TracesError(MISSING.format(name=name)) from None
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over our own.
    resource = Resource({"service.name": "yap-text-inference", "service.version": __version__})
    resource = resource.merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return SpanMaker(provider, model)


class SpanMaker:
    """Makes spans with OpenTelemetry's SDK.

    Args:
        provider: where they go.
        model: the served model's name.
    """

    def __init__(self, provider: TracerProvider, model: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("yap", __version__)
        self._model = model

    def turn(self, facts: TurnFacts) -> None:
        """Make a turn's spans: `chat`, and in it `decide tools`, `queue and prefill`, `reply`."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        now, wall = time.perf_counter(), time.time_ns()

        def at(moment: float) -> int:
            return wall - round((now - moment) * 1e9)

        times, usage = facts.times, facts.usage
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "yap",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.request.stream": facts.stream,
            "yap.outcome": facts.outcome,
            "yap.key": facts.key,
        }
        if facts.conversation:
            attributes["gen_ai.conversation.id"] = facts.conversation
        if facts.outcome == "done":
            attributes["gen_ai.response.finish_reasons"] = [usage.finish_reason]
        if usage.ttft_ms is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = usage.ttft_ms / 1000
        if facts.outcome in FAILURES:
            attributes["error.type"] = FAILURES[facts.outcome]
        whole = self._tracer.start_span(
            f"chat {self._model}".strip(),
            context=_parent(facts.traceparent),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=at(times.received),
        )
        inside = set_span_in_context(whole)

        def part(name: str, begin: float | None, end: float | None, tools: str = "") -> None:
            if begin is not None:
                named = {"gen_ai.tool.name": tools} if tools else None
                span = self._tracer.start_span(name, inside, attributes=named, start_time=at(begin))
                span.end(at(times.ended if end is None else end))

        part("decide tools", times.decided_from, times.decided, ", ".join(facts.tools))
        part("queue and prefill", times.asked, times.first_token)
        part("reply", times.first_token, None)
        if facts.outcome in FAILURES:
            whole.set_status(Status(StatusCode.ERROR))
        whole.end(at(times.ended))

    def close(self) -> None:
        """Export what is left; a collector that does not answer is waited for as long as the SDK does."""
        self._provider.shutdown()


def _parent(traceparent: str | None) -> Context:
    """The context of a client's span; an empty one where there is none, or none that can be read."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    found = TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
    if found is None or traceparent is None or traceparent.strip().startswith("ff"):
        return Context()
    flags = TraceFlags(int(found[3], 16) & TraceFlags.SAMPLED)
    return set_span_in_context(
        NonRecordingSpan(SpanContext(int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=flags)),
        Context(),
    )
