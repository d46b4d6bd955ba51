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
import gc
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from runtime import __version__, artifact, defaults, engines
from runtime.artifact import SCREENSHOT_TOOL, ArtifactError, BuildMetadata, ToolModel, verify
from runtime.artifact.files.view import View
from runtime.artifact.metadata import same
from runtime.artifact.repository import named_on_hub
from runtime.defaults import GPU_ALONE
from runtime.deployment import traces
from runtime.deployment.breaker import Breaker
from runtime.deployment.classifier import ALONE_THREADS, BESIDE_CHAT_THREADS, ToolClassifier
from runtime.deployment.metrics import Metrics, PrincipalFigures
from runtime.deployment.models import Chat, Classifier, Deployment
from runtime.deployment.serving import ChatServing, ServingPlan, ToolServing, plan
from runtime.deployment.settings import RuntimeSettings, SettingsError
from runtime.deployment.timeline import Timeline
from runtime.deployment.traces import Tracer
from runtime.engines import Engine, EngineDeadError, Sampling
from runtime.host import descriptors, logs, machine
from runtime.host.machine import Machine
from runtime.host.ratelimit import SlidingWindow
from runtime.host.supervision import Background, attempt, contained, repeat
from runtime.host.timeouts import within
from runtime.server.admission import Admission
from runtime.server.auth import Credential, Keyring
from runtime.server.connection import ConnectionLimits
from runtime.server.front.sockets import Sockets
from runtime.server.maintenance import CacheResetter, expire_sessions, refresh_sessions
from runtime.server.quotas import Seats, connections_for_each, share_for_each
from runtime.server.readiness import Readiness, readiness
from runtime.text.prompt import PromptRenderer
from runtime.text.replies.channels import PLAIN, ReplyFormat
from runtime.text.thought import THINKS, WAY_OUT
from runtime.turns.sessions.exchange import Exchange
from runtime.turns.sessions.keeper import SessionKeeper
from runtime.turns.sessions.registry import SessionRegistry
from runtime.turns.sessions.session import Session
from runtime.turns.stores.interface import Store
from runtime.turns.stores.sealing import Sealer
from runtime.turns.turn import Stop
from runtime.wire import frames
from runtime.wire.decoder import Decoder
from runtime.wire.openai.request import RequestReader

log = structlog.get_logger(__name__)

HEALTH_INTERVAL_S = 0.5
# A health check that hangs is tried again; so is one that fails, soon, since it is what tells the engine's death.
HEALTH_TIMEOUT_S = 5.0
HEALTH_LONGEST_WAIT_S = 1.0
LOAD_TIMEOUT_S = 2.0
TRACES_TIMEOUT_S = 3.0
# A classifier that does not answer is asked this, and so often.
PROBE = "hello"
PROBE_LEAST_S, PROBE_MOST_S = 0.25, 5.0
# Time that clients have to take note of the engine's death; the whole exit must fit into 5 s.
CLOSE_GRACE_S = 1.5
TOKENIZER_THREADS = 2
# What a model is called of which nothing is known.
UNNAMED = "chat"


class Phase(enum.Enum):
    """The server's health."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class Admitted(Protocol):
    """A connection, or a request over HTTP, that holds a slot.

    Attributes:
        closed: set when it has ended.
    """

    closed: asyncio.Event

    def close(self, code: int, reason: str, last: frames.Frame | None = None, why: Stop = Stop.DISCONNECT) -> None:
        """End what runs, say so, and end it: the close code and reason of a WebSocket, and its last frame."""

    def drain(self, seconds: float) -> None:
        """End it when nothing of it runs, after `seconds` at the latest."""


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, as clients name it.

    Attributes:
        names: of the model; the first is the one that is told.
        fingerprint: changes with what is served; none where nothing is known of it.
        since: seconds since 1970.
    """

    names: tuple[str, ...]
    fingerprint: str | None = None
    since: int = field(default_factory=lambda: int(time.time()))


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
        keyring: who may connect.
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
        self.keyring = Keyring(settings.keys(), separate_caches=settings.cache_sharing == "key")
        self.admission = Admission(settings.max_concurrent_connections, settings.ws_handshake_acquire_timeout_s)
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
        self.seats = Seats(
            self.connections_for_each,
            lambda: SlidingWindow(settings.ws_max_messages_per_window, settings.ws_message_window_seconds),
            lambda: SlidingWindow(settings.ws_max_cancels_per_window, settings.ws_cancel_window_seconds),
            lambda: SlidingWindow(settings.requests_per_window(), settings.ws_message_window_seconds),
            lambda: SlidingWindow(settings.ws_max_prepares_per_window, settings.ws_prepare_window_seconds),
        )
        self.connections: set[Admitted] = set()
        self.credentials: dict[Admitted, Credential] = {}
        self.deployment: Deployment | None = None
        self.sessions: SessionRegistry | None = None
        self.tracer: Tracer | None = None  # none where nobody asked for traces
        self.store: Store | None = None
        self._keeper: SessionKeeper | None = None  # keeps sessions beyond this process
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opened = asyncio.Event()  # set when it has been ready
        self._drain_deadline = 0.0  # loop time at which draining ends
        self._engine: Engine | None = None  # to be shut down
        self._classifier: ToolClassifier | None = None  # to be shut down
        self._view: View | None = None  # to be removed
        # Renders prompts that would hold up the event loop.
        self._pool = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        self._background = Background()  # what nobody awaits
        self._reloading = asyncio.Lock()  # one reading of the keys at a time: the last one counts
        self.metrics.connections_max.set(self.admission.limit)
        self.metrics.open_files.set_function(descriptors.limit)
        self.metrics.unadmitted.set_function(lambda: self.sockets.unadmitted)
        self.metrics.connections.set_function(lambda: self.admission.held)
        self.metrics.ready.set_function(lambda: self.readiness().ready)
        self.metrics.slots_free.set_function(lambda: self.readiness().slots_free)
        self.metrics.sessions.set_function(self._sessions_kept)
        self.metrics.session_bytes.set_function(lambda: self.sessions.bytes if self.sessions is not None else 0)
        self.metrics.principals = self._principal_figures

    def start(self) -> None:
        """Load in the background unless that was done; what goes wrong ends the service."""
        if self.deployment is None:
            self._background.spawn("load", self._load_or_end())

    async def _load_or_end(self) -> None:
        try:
            await self.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whoever awaits `ended` says why the process ends
            if isinstance(error, SystemExit):  # a library's; asyncio would let it through, and nobody would be told why
                error = RuntimeError(f"a library asked for exit status {error.code}")
            if self._view is not None:
                await asyncio.to_thread(self._view.close)  # the process may end at once
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
        settings = self.settings
        self.timeline.enter("fetch")
        here = await asyncio.to_thread(machine.describe)
        folder = await asyncio.to_thread(self._folder, here)
        self.reason = "checking the artifact"
        self.timeline.enter("check")
        described = await asyncio.to_thread(artifact.read, folder)
        serving = plan(settings, described)
        with_code = settings.artifact_trust == "unsigned" or settings.artifact_public_key_file is not None
        self._view = view = await asyncio.to_thread(View, described, with_code=with_code)
        _prepare_environment(allow_long_context=settings.vllm_allow_long_max_model_len)
        fraction = serving.chat.options.gpu_fraction if serving.chat else GPU_ALONE
        # Importing an engine takes as long as hashing tens of gigabytes, and touches no weight.
        importing = (
            asyncio.to_thread(engines.preload, described, serving.chat.options) if serving.chat else asyncio.sleep(0)
        )

        async def check() -> BuildMetadata:
            checked = await asyncio.to_thread(
                verify.check_artifact,
                folder,
                here,
                batch_size=serving.batch_size,
                gpu_fraction=fraction,
                public_key=settings.artifact_public_key_file,
                take=view.take,
                sharing=engines.sharing_of(serving.chat.options) if serving.chat else verify.AS_BUILT,
            )
            self.timeline.enter("import")  # what is left of it
            return checked

        metadata, _ = await asyncio.gather(check(), importing)
        self.timeline.enter("settle")
        if not same(metadata, described):
            raise ArtifactError(f"{folder}: expected what was read first, found that it changed; start again")
        logs.take_over()  # the engine's library has been imported, and its processes inherit what it does
        try:
            # The engine first: its processes are forked from this one, imports and all, while it has not used CUDA.
            chat = await self._load_chat(view, serving.chat) if serving.chat else None
            if serving.tool is not None and metadata.tool is not None:
                beside = BESIDE_CHAT_THREADS if serving.chat is not None else ALONE_THREADS
                await self._load_tool(view.folder, metadata.tool, serving.tool, here.device, beside)
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(view.folder), str(folder))) from error
        self.timeline.enter("settle")
        await asyncio.to_thread(view.settle)
        logs.take_over()
        freeze_heap()
        served = _served(metadata)
        self.tracer = await asyncio.to_thread(traces.tracer, model=served["chat"] or served["tool"])
        self.served = Served(
            settings.served_model_names or tuple(name for name in (served["chat"] or served["tool"],) if name),
            f"fp_{served['digest']}",
        )
        self.metrics.serves({"version": __version__, "lane": metadata.lane}, served)
        log.info("loaded", mode=serving.mode, lane=metadata.lane, **served)
        self.open(chat, self._classifier, serving)

    async def _load_chat(self, view: View, chat: ChatServing) -> Chat:
        self.reason = "loading the chat model"
        self.timeline.enter("template")
        if view.leaves_out_code:
            log.warning(
                "compile_cache_left_out",
                reason="it is code, and the artifact's signature was not checked; the engine compiles anew",
                remedy="set ARTIFACT_PUBLIC_KEY_FILE, or ARTIFACT_TRUST=unsigned for an artifact that you made",
            )
        elif (built := view.metadata.chat) and not engines.finds_cache(built, chat.options):
            log.warning(
                "compile_cache_left_out",
                reason=f"it was compiled for {built.limits.gpus} GPU(s) that share the model; the engine compiles anew",
                remedy="unset TENSOR_PARALLEL_SIZE and PIPELINE_PARALLEL_SIZE, or build the artifact with them",
            )
        try:
            renderer = await asyncio.to_thread(PromptRenderer, view.folder, chat.budgets, chat.thinking > 0)
        except ValueError as error:
            raise ArtifactError(str(error)) from error
        form: ReplyFormat = getattr(renderer, "format", PLAIN)  # a renderer that tells none has plain replies
        proven = view.metadata.chat.thinking_max_tokens if view.metadata.chat else defaults.THINKING_TOKENS
        if form.thinks and chat.thinking != proven:
            log.warning("thought has another budget than it was proven with", tokens=chat.thinking, proven=proven)
        if form.thinks and not chat.thinking:
            raise SettingsError([f"THINKING_MAX_TOKENS: expected {THINKS}; found 0; {WAY_OUT}"])
        self._engine = engines.create(view.folder, view.metadata, chat.options)
        self.timeline.enter("spawn")
        await self._engine.start()
        self.timeline.splice(self._engine.start_marks())
        places = engines.places_of(view.metadata, chat.options)
        return Chat(self._engine, renderer, self._pool, chat.budgets, form=form, thinking=chat.thinking, places=places)

    async def _load_tool(
        self, folder: Path, tool: ToolModel, chosen: ToolServing, device: str, cpu_threads: int
    ) -> None:
        self.reason = "loading the classifier"
        self.timeline.enter("classifier")
        self._classifier = ToolClassifier(
            folder / tool.path,
            threshold=chosen.threshold,
            max_tokens=chosen.max_tokens,
            positive_label=tool.served_tools[0].label,
            tools=chosen.tools,
            device=device,
            gpu_fraction=chosen.gpu_fraction,
            cpu_threads=cpu_threads,
        )
        await self._classifier.start()

    def _folder(self, here: Machine) -> Path:
        """Where the artifact lies, fetched first where it is named on the hub."""
        settings = self.settings
        name = settings.artifact or ""
        if not named_on_hub(name):
            return Path(name)
        from runtime.artifact.fetch import Fetcher, cache_folder

        self.reason = "fetching the artifact"
        cache = settings.artifact_cache_dir or cache_folder(os.environ)
        sharing = verify.Sharing(settings.tensor_parallel_size, settings.pipeline_parallel_size)
        fetcher = Fetcher(
            cache, here, lambda line: log.info("fetch", what=line), settings.artifact_public_key_file, sharing
        )
        return fetcher.fetch(name)

    def open(self, chat: Chat | None, classifier: Classifier | None, serving: ServingPlan) -> None:
        """Become ready: take connections, and watch the engine."""
        settings = self.settings
        resetter = None
        if chat is not None:
            if settings.metrics_engine:
                self.metrics.engines_own = chat.engine.own_metrics
            resetter = CacheResetter(chat.engine, self.metrics, settings.cache_reset_interval_seconds)
            self._background.spawn("engine_health", self._watch_health(chat.engine))
            self._background.spawn("engine_load", self._watch_load(chat.engine))
            if settings.cache_reset_interval_seconds:
                self._background.spawn("cache_reset", resetter.run())
        breaker = Breaker()
        if classifier is not None:
            probe = partial(self._probe, classifier)
            breaker = Breaker(lambda: self._background.spawn("classifier_probe", probe(breaker)))
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
        self._keeper = self._keep_sessions()
        self.sessions = SessionRegistry(
            lambda session_id: self._new_session(session_id, sampling),
            idle_ttl=settings.session_idle_ttl_seconds,
            maximum=settings.max_sessions,
            max_bytes=settings.max_session_bytes,
            keeper=self._keeper,
        )
        self._share_sessions()
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

    def _keep_sessions(self) -> SessionKeeper | None:
        """What keeps sessions beyond this process; none where nobody asked for it."""
        settings = self.settings
        where = settings.store()
        if self.store is None and where is not None:
            from runtime.turns.stores.valkey_store import ValkeyStore

            self.store = ValkeyStore(
                where.address,
                password=where.password,
                ca_file=where.ca_file,
                ttl=settings.session_idle_ttl_seconds,
                timeout=settings.session_store_timeout_s,
            )
            log.info("session_store", address=str(where.address), encrypted=bool(where.keys))
        if self.store is None:
            return None
        exchange = Exchange(
            Sealer(where.keys if where is not None else ()),
            self.metrics.session_store,
            bounds=settings.bounds(),
            max_bytes=settings.session_store_max_bytes,
        )
        return SessionKeeper(self.store, exchange, self.metrics.session_store)

    @property
    def degraded(self) -> tuple[str, ...]:
        """The parts that do not work, though the server does."""
        return ("classifier",) if self.deployment is not None and self.deployment.breaker.open else ()

    async def _probe(self, classifier: Classifier, breaker: Breaker) -> None:
        """Ask a classifier that did not answer until it does, on nobody's time but this task's."""
        timeout = self.settings.tool_timeout_s
        pause = min(PROBE_MOST_S, max(PROBE_LEAST_S, timeout))
        while breaker.open:
            await asyncio.sleep(pause)
            with contextlib.suppress(Exception):  # it was told when the breaker opened
                await within(timeout, contained(lambda: classifier.decide((), PROBE)))
                breaker.answered()

    def _new_session(self, session_id: str, sampling: Sampling) -> Session:
        settings = self.settings
        updates = SlidingWindow(settings.chat_prompt_update_max_per_window, settings.chat_prompt_update_window_seconds)
        prefixes = (settings.check_screen_prefix, settings.screen_checked_prefix)
        return Session(session_id, sampling, prefixes, updates)

    # Principals

    def connections_for_each(self) -> int | None:
        """Connections that each principal may have; none where only the slots limit them."""
        return connections_for_each(
            self.settings.max_connections_per_key, self.admission.limit, len(self.keyring.principals)
        )

    def reload_keys(self) -> None:
        """Read the keys anew. Those that are gone lose their connections; the others notice nothing."""
        self._background.spawn("key_reload", self._reload_keys())

    async def _reload_keys(self) -> None:
        async with self._reloading:
            try:
                keys = await asyncio.to_thread(self.settings.keys)
            except SettingsError as error:
                # Without the variable's name: what stands behind one that speaks of keys is hidden from the log.
                problems = [problem.partition(": ")[2] for problem in error.problems]
                log.error("keys_not_reloaded", problems=problems, next_step="the keys from before still hold")
                return
            logs.hide(key.secret for key in keys)
            gone = self.keyring.replace(keys)
        closed = [
            connection for connection, credential in self.credentials.items() if not self.keyring.holds(credential)
        ]
        for connection in closed:
            self.close_removed(connection)
        for principal in gone:
            self.seats.forget(principal)
            if self.sessions is not None:
                self.sessions.forget(principal)
        self._share_sessions()
        log.info(
            "keys_reloaded", keys=len(keys), principals=len(self.keyring.principals), gone=len(gone), closed=len(closed)
        )

    def close_removed(self, connection: Admitted) -> None:
        """Close a connection whose key is not accepted any more."""
        last = frames.Error(error_code="authentication_failed", message="The API key was taken away.")
        connection.close(frames.CLOSE_POLICY, "key_removed", last)

    def _share_sessions(self) -> None:
        settings, principals = self.settings, len(self.keyring.principals)
        if self.sessions is not None:
            self.sessions.set_quota(
                share_for_each(settings.max_sessions_per_key, settings.max_sessions, principals),
                share_for_each(settings.max_session_bytes_per_key, settings.max_session_bytes, principals),
            )

    def _sessions_kept(self) -> int:
        if self.sessions is None:
            return 0
        self.sessions.expire()  # what nobody can find any more is not kept
        return len(self.sessions)

    def _principal_figures(self) -> list[PrincipalFigures]:
        figures = []
        for principal in self.keyring.principals:
            sessions, size = self.sessions.kept(principal) if self.sessions is not None else (0, 0)
            figures.append(
                PrincipalFigures(
                    name=principal.name,
                    connections=self.seats.taken(principal),
                    sessions=sessions,
                    session_bytes=size,
                    turns=principal.turns,
                    prompt_tokens=principal.prompt_tokens,
                    cached_tokens=principal.cached_tokens,
                    completion_tokens=principal.completion_tokens,
                    refused=principal.refused,
                )
            )
        return figures

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
            for connection in list(self.connections):
                attempt(
                    "close_connection",
                    partial(connection.close, frames.CLOSE_GOING_AWAY, "engine_died", why=Stop.ENGINE_DEAD),
                )
            await self._connections_closed(CLOSE_GRACE_S)
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
            for connection in list(self.connections):
                attempt("drain_connection", partial(connection.drain, seconds))
            await self._connections_closed(seconds + CLOSE_GRACE_S)
            log.info("drained", connections=len(self.connections))
        finally:
            if not self.ended.done():
                self.ended.set_result(None)

    async def _connections_closed(self, timeout: float) -> None:
        closed = [connection.closed.wait() for connection in self.connections]
        with contextlib.suppress(asyncio.TimeoutError):
            await within(timeout, asyncio.gather(*closed))

    async def close(self) -> None:
        """Stop everything that was started."""
        if self._keeper is not None:
            await self._keeper.close()
        await self._background.cancel()
        if self._keeper is not None:
            await self._keeper.stop()
        try:
            if self._engine is not None:
                await self._engine.shutdown()
        finally:
            try:
                if self._classifier is not None:
                    await self._classifier.shutdown()
                if self.tracer is not None:
                    with contextlib.suppress(asyncio.TimeoutError):  # a collector that does not answer loses the last
                        await within(TRACES_TIMEOUT_S, asyncio.to_thread(self.tracer.close))
            finally:
                self._pool.shutdown(wait=False, cancel_futures=True)
                if self._view is not None:
                    await asyncio.to_thread(self._view.close)

    async def _watch_health(self, engine: Engine) -> None:
        """Ask after the engine's health for ever. Apart from its load, so that odd figures cannot hide its death."""

        async def check() -> None:
            with self._telling_death():
                await engine.health()

        await repeat(
            "engine_health",
            check,
            HEALTH_INTERVAL_S,
            longest_wait=HEALTH_LONGEST_WAIT_S,
            timeout=HEALTH_TIMEOUT_S,
        )

    async def _watch_load(self, engine: Engine) -> None:
        """Note for ever what the engine's scheduler holds."""

        async def note() -> None:
            with self._telling_death(), contextlib.suppress(asyncio.TimeoutError):  # busy, and alive
                load = await within(LOAD_TIMEOUT_S, contained(engine.load))
                self.metrics.engine(up=self.phase is not Phase.DEAD, load=load)
                if self.deployment is not None and self.deployment.chat is not None:
                    self.deployment.chat.places.press(load)

        await repeat("engine_load", note, HEALTH_INTERVAL_S)

    @contextlib.contextmanager
    def _telling_death(self) -> Iterator[None]:
        try:
            yield
        except EngineDeadError as error:
            self.died(error)


def freeze_heap() -> None:
    """Exempt what is loaded from garbage collection: it stays. Call when everything is loaded.

    The libraries are hundreds of thousands of objects; going through them would hold up every turn now and then. Small
    collections come less often too: turns make hardly any cycles. The middle ones do not: each goes through five times
    ten thousand objects at most, and holds everybody up meanwhile.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 5, 20)


def _served(metadata: BuildMetadata) -> dict[str, str]:
    """What is served, in words of its metadata."""
    chat, tool = metadata.chat, metadata.tool
    return {
        "digest": metadata.digest[:12],
        "engine": metadata.engine,
        "chat": chat.source.repo if chat else "",
        "chat_revision": (chat.source.revision or "") if chat else "",
        "method": chat.quantization.method if chat else "",
        "tool": tool.source.repo if tool else "",
    }


def _prepare_environment(*, allow_long_context: bool) -> None:
    """Set what the engines' libraries read when they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads of ours, never a fork, run the tokenizer
    if allow_long_context:
        os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
