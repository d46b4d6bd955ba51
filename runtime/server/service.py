"""The running server as a whole: loads what it serves, watches it, drains it.

    loading ──► ready ──► draining ──► (exit 0)
       │          │          │
       └──────────┴──────────┴──► dead ──► (exit 70)

`/readyz` answers 200 in `ready` alone. What ends the process is the result of `ended`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from functools import partial

import structlog

from runtime import __version__, defaults
from runtime.artifact import SCREENSHOT_TOOL
from runtime.deployment import traces
from runtime.deployment.breaker import Breaker
from runtime.deployment.metrics import Metrics
from runtime.deployment.models import Chat, Classifier, Deployment
from runtime.deployment.serving import ServingPlan
from runtime.deployment.settings import RuntimeSettings
from runtime.deployment.timeline import Timeline
from runtime.deployment.traces import Tracer
from runtime.engines import EngineDeadError, Load, Sampling
from runtime.host import descriptors
from runtime.host.supervision import Background, contained
from runtime.host.timeouts import within
from runtime.server.admission import Admission
from runtime.server.connection import ConnectionLimits
from runtime.server.front.sockets import Sockets
from runtime.server.life import session_keeping
from runtime.server.life.admitted import Admitted, Connections, close_removed
from runtime.server.life.classifier_probe import probe
from runtime.server.life.engine_watch import EngineWatch
from runtime.server.life.loader import Loader
from runtime.server.life.principals import Principals
from runtime.server.life.served import UNNAMED, Served, described
from runtime.server.maintenance import CacheResetter, expire_sessions, refresh_sessions
from runtime.server.readiness import Readiness, readiness
from runtime.turns.sessions.keeper import SessionKeeper
from runtime.turns.sessions.registry import SessionRegistry
from runtime.turns.stores.interface import Store
from runtime.turns.turn import Stop
from runtime.wire import frames
from runtime.wire.decoder import Decoder
from runtime.wire.openai.request import RequestReader

log = structlog.get_logger(__name__)

TRACES_TIMEOUT_S = 3.0
# Time that clients have to take note of the engine's death; the whole exit must fit into 5 s.
CLOSE_GRACE_S = 1.5


class Phase(enum.Enum):
    """The server's health."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class Service:
    """One server's state; its parts are made by `load`, or handed in by tests through `open`.

    Args:
        settings: the environment.
        began: when the process did, by `time.monotonic`; now where it does other work too.

    Attributes:
        settings: the environment.
        timeline: where the time of the start goes.
        phase: what `/readyz` tells.
        reason: why the server is not ready; empty when it is.
        metrics: what `/metrics` tells.
        principals: who may connect, and what each has of the server.
        keyring: the keys of those.
        admission: how many may.
        sockets: all that are open, and who has to go.
        sampling: how replies are drawn where nobody says otherwise.
        decoder: shared by all connections.
        requests: reads those of OpenAI's clients.
        limits: those of each connection.
        seats: what each principal has of them.
        connections: those that are open, and requests over HTTP that hold a slot.
        credentials: the keys that they came with.
        served: what it is called; a stand-in before it is loaded.
        deployment: what is served; none before it is loaded.
        sessions: what is kept between turns; none before the models are loaded.
        store: where sessions are kept beyond this process; none where they are not.
        tracer: takes what is known of turns that ended; none where nobody asked for traces.
        ended: the engine's death, or a failure to load, raises here; a finished drain is a result.
    """

    def __init__(self, settings: RuntimeSettings, began: float | None = None) -> None:
        self.settings = settings
        self.timeline = Timeline(time.monotonic() if began is None else began, "process")
        self.phase = Phase.LOADING
        self.reason = "checking the artifact"
        self.metrics = Metrics(settings.ws_close_idle_code)
        self.admission = Admission(settings.max_concurrent_connections, settings.ws_handshake_acquire_timeout_s)
        self.principals = Principals(settings, self.admission.limit)
        self.keyring, self.seats = self.principals.keyring, self.principals.seats
        self.credentials = self.principals.credentials
        self.sockets = Sockets(
            defaults.first_set(settings.max_unadmitted_sockets, default=defaults.UNADMITTED + self.admission.limit),
            settings.handshake_deadline_s,
            self.metrics.socket_dropped,
        )
        self.served = Served(settings.served_model_names or (UNNAMED,))
        self.sampling = Sampling()
        self.decoder = Decoder(settings.grammar())
        self.requests = RequestReader(settings.grammar(), self.served.names, ())
        self.limits = ConnectionLimits(
            idle_timeout=settings.ws_idle_timeout_s,
            idle_code=settings.ws_close_idle_code,
        )
        self.connections = Connections()
        self.deployment: Deployment | None = None
        self.sessions: SessionRegistry | None = None
        self.tracer: Tracer | None = None  # none where nobody asked for traces
        self.store: Store | None = None
        self._keeper: SessionKeeper | None = None  # keeps sessions beyond this process
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opened = asyncio.Event()  # set when it has been ready
        self._drain_deadline = 0.0  # loop time at which draining ends
        self._loader = Loader(settings, self.timeline, self._tell)  # loads what is served, and lets go of it
        self._background = Background()  # what nobody awaits
        self.metrics.connections_max.set(self.admission.limit)
        self.metrics.open_files.set_function(descriptors.limit)
        self.metrics.unadmitted.set_function(lambda: self.sockets.unadmitted)
        self.metrics.connections.set_function(lambda: self.admission.held)
        self.metrics.ready.set_function(lambda: self.readiness().ready)
        self.metrics.slots_free.set_function(lambda: self.readiness().slots_free)
        self.metrics.sessions.set_function(self._sessions_kept)
        self.metrics.session_bytes.set_function(lambda: self.sessions.bytes if self.sessions is not None else 0)
        self.metrics.principals = self.principals.figures

    def start(self) -> None:
        """Load in the background unless that was done; what goes wrong ends the service."""
        if self.deployment is None:
            self._background.spawn("load", self._load_or_end())

    async def _load_or_end(self) -> None:
        try:
            await contained(self.load)  # asyncio would let a library's exit through, and nobody would be told why
        except Exception as error:  # noqa: BLE001 - whoever awaits `ended` says why the process ends
            await self._loader.discard_view()  # the process may end at once
            self.phase, self.reason = Phase.DEAD, "loading failed"
            if not self.ended.done():
                self.ended.set_exception(error)

    async def opened(self) -> None:
        """Wait until what `start` began is ready.

        Raises:
            Exception: whatever kept it from that, as `ended` has it.
        """
        waiting = asyncio.ensure_future(self._opened.wait())
        try:
            await asyncio.wait((waiting, self.ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self.ended.done():
            self.ended.result()

    async def load(self) -> None:
        """Check the artifact, load its models, and be ready.

        Raises:
            ArtifactError: the artifact cannot be served here.
            SettingsError: the settings do not fit the artifact.
        """
        loaded = await self._loader.load()
        served = described(loaded.metadata)
        self.tracer = await asyncio.to_thread(traces.tracer, model=served["chat"] or served["tool"])
        self.served = Served(
            self.settings.served_model_names or tuple(name for name in (served["chat"] or served["tool"],) if name),
            f"fp_{served['digest']}",
        )
        self.metrics.serves({"version": __version__, "lane": loaded.metadata.lane}, served)
        log.info("loaded", mode=loaded.serving.mode, lane=loaded.metadata.lane, **served)
        self.open(loaded.chat, loaded.classifier, loaded.serving)

    def _tell(self, reason: str) -> None:
        self.reason = reason

    def open(self, chat: Chat | None, classifier: Classifier | None, serving: ServingPlan) -> None:
        """Become ready: take connections, and watch the engine."""
        settings = self.settings
        resetter = None
        if chat is not None:
            if settings.metrics_engine:
                self.metrics.engines_own = chat.engine.own_metrics
            resetter = CacheResetter(chat.engine, self.metrics, settings.cache_reset_interval_seconds)
            watch = EngineWatch(chat.engine, self.died, self._note_load)
            self._background.spawn("engine_health", watch.health())
            self._background.spawn("engine_load", watch.load())
            if settings.cache_reset_interval_seconds:
                self._background.spawn("cache_reset", resetter.run())
        breaker = Breaker()
        if classifier is not None:
            ask = partial(probe, classifier, timeout=settings.tool_timeout_s)
            breaker = Breaker(lambda: self._background.spawn("classifier_probe", ask(breaker)))
            self.metrics.tool_degraded.set_function(lambda: breaker.open)
        self.deployment = Deployment(
            chat,
            classifier,
            self.metrics,
            generation_timeout=settings.gen_timeout_s,
            tool_timeout=settings.tool_timeout_s,
            breaker=breaker,
            died=self.died,
            tracer=self.tracer,
            log_turns=settings.log_turns,
            warmed=resetter.warmed if resetter is not None else lambda: None,
            prepare_tokens=settings.prepare_max_tokens,
            prepare_ttl=settings.prepare_ttl_s,
        )
        if serving.chat is not None:
            self.sampling = settings.sampling(serving.chat.max_out)
        sampling = self.sampling
        grammar = settings.grammar(sampling.max_tokens)
        self.decoder = Decoder(grammar)
        tools = [tool.name for tool in serving.tool.tools] or [SCREENSHOT_TOOL] if serving.tool is not None else []
        self.requests = RequestReader(grammar, self.served.names, tools if classifier is not None else ())
        if self.store is None:
            self.store = session_keeping.store_of(settings)
        self._keeper = session_keeping.keeper_of(settings, self.store, self.metrics)
        self.sessions = session_keeping.registry_of(settings, sampling, self._keeper)
        self.principals.keep(self.sessions)
        self._background.spawn("session_expiry", expire_sessions(self.sessions))
        if self._keeper is not None:
            self._background.spawn("session_store", self._keeper.run())
            self._background.spawn(
                "session_refresh", refresh_sessions(self.sessions, settings.session_idle_ttl_seconds)
            )
        self.metrics.engine(up=True)
        self.phase, self.reason = Phase.READY, ""
        self._opened.set()
        self.timeline.end()
        took = self.timeline.phases()
        self.metrics.started(took)
        log.info("ready", seconds=round(sum(took.values()), 1), phases={name: round(s, 2) for name, s in took.items()})

    def readiness(self) -> Readiness:
        """What `/readyz` answers now."""
        return readiness(
            self.phase.value,
            self.reason,
            self.degraded,
            chat=self.deployment is None or self.deployment.chat is not None,
            held=self.admission.held,
            slots=self.admission.limit,
            sessions=self._sessions_kept(),
            load=self.metrics.load,
        )

    @property
    def degraded(self) -> tuple[str, ...]:
        """The parts that do not work, though the server does."""
        return ("classifier",) if self.deployment is not None and self.deployment.breaker.open else ()

    # Principals

    def reload_keys(self) -> None:
        """Read the keys anew. Those that are gone lose their connections; the others notice nothing."""
        self._background.spawn("key_reload", self.principals.reload())

    def close_removed(self, connection: Admitted) -> None:
        """Close a connection whose key is not accepted any more."""
        close_removed(connection)

    def _sessions_kept(self) -> int:
        if self.sessions is None:
            return 0
        self.sessions.expire()  # what nobody can find any more is not kept
        return len(self.sessions)

    def _note_load(self, load: Load) -> None:
        self.metrics.engine(up=self.phase is not Phase.DEAD, load=load)
        if self.deployment is not None and self.deployment.chat is not None:
            self.deployment.chat.places.press(load)

    # The end

    def died(self, error: EngineDeadError) -> None:
        """The engine is dead: end what runs, say why, and end the service."""
        if self.phase is not Phase.DEAD:
            self.phase, self.reason = Phase.DEAD, "the engine died"
            self.metrics.engine(up=False)
            log.error("engine_died", reason=str(error))
            self._background.spawn("end_dead", self._end_dead(error))

    async def _end_dead(self, error: EngineDeadError) -> None:
        try:
            self.connections.close(frames.CLOSE_GOING_AWAY, "engine_died", Stop.ENGINE_DEAD)
            await self.connections.gone(CLOSE_GRACE_S)
        finally:
            if not self.ended.done():
                self.ended.set_exception(error)

    def drain(self) -> None:
        """Take no new turns, let running ones finish, close every connection, and end the service."""
        if self.phase is Phase.READY:
            self.phase, self.reason = Phase.DRAINING, "draining"
            self._drain_deadline = asyncio.get_running_loop().time() + self.settings.drain_timeout_s
            log.info("draining", connections=len(self.connections), deadline_s=self.settings.drain_timeout_s)
            self._background.spawn("drain", self._drain())

    def draining(self) -> frames.Draining:
        """What a client is told that comes while the server drains: how long running turns still have."""
        left = self._drain_deadline - asyncio.get_running_loop().time()
        return frames.Draining(deadline_s=max(0, round(left)))

    async def _drain(self) -> None:
        seconds = self.settings.drain_timeout_s
        try:
            self.connections.drain(seconds)
            await self.connections.gone(seconds + CLOSE_GRACE_S)
            log.info("drained", connections=len(self.connections))
        finally:
            if not self.ended.done():
                self.ended.set_result(None)

    async def close(self) -> None:
        """Stop everything that was started."""
        if self._keeper is not None:
            await self._keeper.close()
        await self._background.cancel()
        if self._keeper is not None:
            await self._keeper.stop()
        try:
            await self._loader.close()
        finally:
            if self.tracer is not None:
                with contextlib.suppress(asyncio.TimeoutError):  # a collector that does not answer loses the last
                    await within(TRACES_TIMEOUT_S, asyncio.to_thread(self.tracer.close))
