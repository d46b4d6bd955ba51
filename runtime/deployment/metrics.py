"""The metrics that Prometheus reads. Observed a turn at a time, so that a token costs nothing here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime import defaults
from runtime.engines import Load
from runtime.wire import frames
from runtime.wire.frames import Usage

_SECONDS = (0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1)


# Every value that a label can have is there from the start, at zero: a rate over a counter that appears with its first
# event misses that event, and an alert on it stays silent.
OUTCOMES = ("done", "cancelled", "failed", "timeout")
DECISIONS = ("yes", "no", "timeout", "failed", "skipped")
TOKEN_KINDS = ("prompt", "cached", "completion")
DROP_REASONS = ("deadline", "too_many", "unread", "flood", "malformed")
# Of HTTP, as the door for OpenAI's clients answers.
STATUSES = ("200", "400", "401", "403", "404", "405", "429", "499", "500", "503", "504")
ENGINE_STATES = ("running", "waiting")
PREPARED_OUTCOMES = ("hit", "miss", "expired", "replaced", "displaced", "ended", "failed")
# Of a start, in their usual order (docs/operations.md).
START_PHASES = (
    "process", "fetch", "check", "import", "template", "spawn", "weights", "profile", "cache", "graphs", "connect",
    "exercise", "classifier", "proof", "settle",
)  # fmt: skip
STORE_OPERATIONS = ("read", "write", "failure", "conflict")

# What a close code is counted as: the registered ones as themselves, since a client may send any other.
_CLOSE_CODES = frozenset(range(1000, 1016))
# Those that a server's life brings.
_USUAL_CODES = (frames.CLOSE_NORMAL, frames.CLOSE_GOING_AWAY, frames.CLOSE_POLICY, frames.CLOSE_TRY_LATER)


@dataclass(frozen=True, slots=True)
class PrincipalFigures:
    """What one principal has and has used.

    Attributes:
        name: the principal's; never a key.
        connections: that are open, or wait for a slot.
        sessions: that are kept.
        session_bytes: of memory that their texts take.
        turns: that ended.
        prompt_tokens, cached_tokens, completion_tokens: of all turns.
        refused: connections and sessions that were over its quota.
    """

    name: str
    connections: int
    sessions: int
    session_bytes: int
    turns: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    refused: int


class _PrincipalCollector(Collector):
    """Tells the principals' figures when they are read. Those that are gone are in it no more."""

    def __init__(self, figures: Callable[[], Iterable[PrincipalFigures]]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """The figures as metrics, one sample a principal."""
        figures = list(self._figures())
        gauges: tuple[tuple[str, str, Callable[[PrincipalFigures], int]], ...] = (
            ("yap_key_connections", "Connections, by the key's holder", lambda one: one.connections),
            ("yap_key_sessions", "Sessions that are kept, by the key's holder", lambda one: one.sessions),
            ("yap_key_session_bytes", "Memory of sessions' texts, by the key's holder", lambda one: one.session_bytes),
        )
        for name, help_text, value in gauges:
            gauge = GaugeMetricFamily(name, help_text, labels=["key"])
            for one in figures:
                gauge.add_metric([one.name], value(one))
            yield gauge
        turns = CounterMetricFamily("yap_key_turns", "Turns that ended, by the key's holder", labels=["key"])
        refused = CounterMetricFamily("yap_key_refused", "Refused: over the key's quota", labels=["key"])
        tokens = CounterMetricFamily("yap_key_tokens", "Tokens, by the key's holder", labels=["key", "kind"])
        for one in figures:
            turns.add_metric([one.name], one.turns)
            refused.add_metric([one.name], one.refused)
            tokens.add_metric([one.name, "prompt"], one.prompt_tokens)
            tokens.add_metric([one.name, "cached"], one.cached_tokens)
            tokens.add_metric([one.name, "completion"], one.completion_tokens)
        yield from (turns, refused, tokens)


class _EngineCollector(Collector):
    """Passes on what the engine says of itself."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """The engine's own metrics, as they are."""
        return self._families()


def _class_of(code: int) -> str:
    """The range of a close code that is not counted by itself."""
    return {3: "3xxx", 4: "4xxx"}.get(code // 1000, "other")


class StoreMetrics:
    """What is told of the session store.

    Attributes:
        up: whether it answers; 1 where there is none.
        lag: seconds since the oldest change that is not written.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.up = Gauge("yap_session_store_up", "Whether the session store answers", registry=registry)
        self.up.set(1)
        self.lag = Gauge(
            "yap_session_store_lag_seconds", "Age of the oldest change that is not in the store", registry=registry
        )
        self._operations = Counter(
            "yap_session_store_operations", "What was asked of the session store", ["kind"], registry=registry
        )
        self._of = {kind: self._operations.labels(kind) for kind in STORE_OPERATIONS}  # looking one up costs more

    def read(self) -> None:
        """Count a session that was taken, or looked at."""
        self._of["read"].inc()

    def written(self, number: int) -> None:
        """Count sessions, and turns, that were written."""
        self._of["write"].inc(number)

    def failed(self) -> None:
        """Count what the store did not do, and what lay in it and was refused."""
        self._of["failure"].inc()

    def lost(self) -> None:
        """Count a session that another server has taken over."""
        self._of["conflict"].inc()


class Metrics:
    """The server's own registry, so that several servers can live in one process.

    Every label has a closed set of values: none comes from a client.

    Attributes:
        session_store: what is told of the session store.
        principals: gives the principals' figures when they are read.
        engines_own: gives the engine's own metrics when they are read.
        load: what the engine's scheduler held when it was last asked.

    Args:
        idle_code: the close code of an idle connection, which is counted by itself.
    """

    def __init__(self, idle_code: int = defaults.IDLE_CLOSE_CODE) -> None:
        # The help text of each metric says what it is.
        self.registry = registry = CollectorRegistry()
        self._turns = Counter("yap_turns", "Turns that ended, by outcome", ["outcome"], registry=registry)
        self._ttft = Histogram("yap_ttft_seconds", "Start to first token", buckets=_SECONDS, registry=registry)
        self._itl = Histogram(
            "yap_inter_token_seconds", "Time between tokens, sampled", buckets=_STEP_SECONDS, registry=registry
        )
        self._duration = Histogram("yap_turn_seconds", "Start to done", buckets=_SECONDS, registry=registry)
        self._tokens = Counter(
            "yap_tokens", "Tokens: prompt, cached (of those), completion", ["kind"], registry=registry
        )
        self._cancels = Counter("yap_cancels", "Cancel messages", registry=registry)
        self._decisions = Counter("yap_tool_decisions", "Tool decisions, by status", ["status"], registry=registry)
        self._tool = Histogram(
            "yap_tool_seconds", "Latency of the classifier", buckets=_STEP_SECONDS, registry=registry
        )
        self.tool_degraded = Gauge(
            "yap_tool_degraded", "Whether the classifier is left alone, because it does not answer", registry=registry
        )
        self._prepared = Counter(
            "yap_prepared_replies",
            "Replies made before their start, by what became of them",
            ["outcome"],
            registry=registry,
        )
        self._wasted = Counter(
            "yap_prepared_wasted_tokens", "Tokens of prepared replies that nobody asked for", registry=registry
        )
        self._closed = Counter("yap_connections_closed", "Closed connections, by code", ["code"], registry=registry)
        self._close_codes = _CLOSE_CODES | {idle_code}  # those that are counted by themselves
        self._dropped = Counter(
            "yap_sockets_dropped", "Sockets that were dropped, by reason", ["reason"], registry=registry
        )
        self._requests = Counter(
            "yap_http_requests", "Requests under /v1, by status; 499: the client hung up", ["status"], registry=registry
        )
        self.unadmitted = Gauge("yap_sockets_unadmitted", "Open sockets that hold no slot", registry=registry)
        self.open_files = Gauge("yap_open_files_max", "Limit of open files", registry=registry)
        self.connections = Gauge("yap_connections_active", "Admitted connections", registry=registry)
        self.connections_max = Gauge("yap_connections_max", "Connection slots", registry=registry)
        self.slots_free = Gauge(
            "yap_slots_free", "Connections that would be taken now; 0 while the server is not ready", registry=registry
        )
        self.ready = Gauge("yap_ready", "Whether new conversations belong here, as /readyz says", registry=registry)
        self.sessions = Gauge("yap_sessions", "Sessions that are kept", registry=registry)
        self.session_bytes = Gauge("yap_session_bytes", "Memory of all sessions' texts", registry=registry)
        self.session_store = StoreMetrics(registry)
        self.principals: Callable[[], Iterable[PrincipalFigures]] = lambda: ()
        registry.register(_PrincipalCollector(lambda: self.principals()))
        self.engines_own: Callable[[], Iterable[Metric]] = lambda: ()
        registry.register(_EngineCollector(lambda: self.engines_own()))
        self._hit_ratio = Gauge("yap_cache_hit_ratio", "Cached part of all prompt tokens so far", registry=registry)
        self._engine_up = Gauge("yap_engine_up", "Whether the engine answers", registry=registry)
        self._engine_requests = Gauge(
            "yap_engine_requests", "Requests in the engine's scheduler", ["state"], registry=registry
        )
        self._kv_usage = Gauge("yap_engine_kv_cache_usage", "Used part of the KV cache", registry=registry)
        self._cache_resets = Counter("yap_cache_resets", "Resets of the engine's caches", registry=registry)
        self._start = Gauge("yap_start_seconds", "Where the time of the start went", ["phase"], registry=registry)
        self._build = Info("yap_build", "The runtime that serves", registry=registry)
        self._artifact = Info("yap_artifact", "What is served", registry=registry)
        for metric, values in (
            (self._turns, OUTCOMES),
            (self._decisions, DECISIONS),
            (self._prepared, PREPARED_OUTCOMES),
            (self._tokens, TOKEN_KINDS),
            (self._dropped, DROP_REASONS),
            (self._engine_requests, ENGINE_STATES),
            (self._start, START_PHASES),
            (self._requests, STATUSES),
            (self._closed, (str(code) for code in (*_USUAL_CODES, idle_code))),
        ):
            for value in values:
                metric.labels(value)
        self.load = Load(0, 0, 0.0)
        self._prompt_tokens = 0  # of all turns so far, for the hit ratio
        self._cached_tokens = 0  # those of them that came out of the prefix cache

    def serves(self, build: Mapping[str, str], artifact: Mapping[str, str]) -> None:
        """Say which runtime serves which artifact, as labels of `yap_build_info` and `yap_artifact_info`."""
        self._build.info(dict(build))
        self._artifact.info(dict(artifact))

    def started(self, took: Mapping[str, float]) -> None:
        """Note the seconds of each phase of the start."""
        for phase, seconds in took.items():
            self._start.labels(phase).set(seconds)

    def turn_ended(self, outcome: str, usage: Usage, gaps: Iterable[float]) -> None:
        """Count a turn: done, cancelled, failed or timeout. `gaps` are sampled times between tokens in seconds."""
        self._turns.labels(outcome).inc()
        self._duration.observe(usage.duration_ms / 1000)
        if usage.ttft_ms is not None:
            self._ttft.observe(usage.ttft_ms / 1000)
        for gap in gaps:
            self._itl.observe(gap)
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("cached").inc(usage.cached_tokens)
        self._tokens.labels("completion").inc(usage.completion_tokens)
        self._prompt_tokens += usage.prompt_tokens
        self._cached_tokens += usage.cached_tokens
        if self._prompt_tokens:
            self._hit_ratio.set(self._cached_tokens / self._prompt_tokens)

    def tool_decided(self, status: str, seconds: float) -> None:
        """Count a decision: yes, no, timeout or failed."""
        self._decisions.labels(status).inc()
        self._tool.observe(seconds)

    def tool_skipped(self) -> None:
        """Count a decision that was no at once, because the classifier does not answer."""
        self._decisions.labels("skipped").inc()

    def prepared_ended(self, outcome: str, wasted: int) -> None:
        """Count a reply that was made before its start: one of `PREPARED_OUTCOMES`, and tokens that nobody gets."""
        self._prepared.labels(outcome).inc()
        self._wasted.inc(wasted)

    def cancelled(self) -> None:
        """Count a cancel message."""
        self._cancels.inc()

    def connection_closed(self, code: int) -> None:
        """Count a connection's end."""
        self._closed.labels(str(code) if code in self._close_codes else _class_of(code)).inc()

    def request_ended(self, status: int) -> None:
        """Count a request under `/v1`."""
        self._requests.labels(str(status)).inc()

    def socket_dropped(self, reason: str) -> None:
        """Count a socket that was dropped."""
        self._dropped.labels(reason).inc()

    def caches_reset(self) -> None:
        """Count a reset of the engine's caches."""
        self._cache_resets.inc()

    def engine(self, *, up: bool, load: Load | None = None) -> None:
        """Note the engine's health and what its scheduler holds."""
        self._engine_up.set(int(up))
        if load is not None:
            self.load = load
            self._engine_requests.labels("running").set(load.running)
            self._engine_requests.labels("waiting").set(load.waiting)
            self._kv_usage.set(load.cache_usage)

    def render(self) -> bytes:
        """All metrics as Prometheus text, version 0.0.4."""
        return generate_latest(self.registry)
