"""The metrics that Prometheus reads. Observed a turn at a time, so that a token costs nothing here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from runtime import defaults
from runtime.deployment.principal_metrics import PrincipalCollector, PrincipalFigures
from runtime.deployment.store_metrics import StoreMetrics
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

# What a close code is counted as: the registered ones as themselves, since a client may send any other.
_CLOSE_CODES = frozenset(range(1000, 1016))
# Those that a server's life brings.
_USUAL_CODES = (frames.CLOSE_NORMAL, frames.CLOSE_GOING_AWAY, frames.CLOSE_POLICY, frames.CLOSE_TRY_LATER)


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
        registry.register(PrincipalCollector(lambda: self.principals()))
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
        # What every turn and request counts in is found once: turns by outcome,
        self._ended = {outcome: self._turns.labels(outcome) for outcome in OUTCOMES}
        # requests by status,
        self._answered = {int(status): self._requests.labels(status) for status in STATUSES}
        # tokens by kind.
        self._of_kind = {kind: self._tokens.labels(kind) for kind in TOKEN_KINDS}
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
        self._ended[outcome].inc()
        self._duration.observe(usage.duration_ms / 1000)
        if usage.ttft_ms is not None:
            self._ttft.observe(usage.ttft_ms / 1000)
        for gap in gaps:
            self._itl.observe(gap)
        self._of_kind["prompt"].inc(usage.prompt_tokens)
        self._of_kind["cached"].inc(usage.cached_tokens)
        self._of_kind["completion"].inc(usage.completion_tokens)
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
        (self._answered.get(status) or self._requests.labels(str(status))).inc()

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
