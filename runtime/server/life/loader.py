"""The loader: checks an artifact, and makes of it the models that a server answers with."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from runtime import artifact, defaults, engines
from runtime.artifact import ArtifactError, BuildMetadata, ToolModel, verify
from runtime.artifact.files.view import View
from runtime.artifact.metadata import same
from runtime.artifact.repository import named_on_hub
from runtime.defaults import GPU_ALONE
from runtime.deployment.classifier import ALONE_THREADS, BESIDE_CHAT_THREADS, ToolClassifier
from runtime.deployment.models import Chat
from runtime.deployment.serving import ChatServing, ServingPlan, ToolServing, plan
from runtime.deployment.settings import RuntimeSettings, SettingsError
from runtime.deployment.timeline import Timeline
from runtime.engines import Engine
from runtime.host import logs, machine
from runtime.host.machine import Machine
from runtime.host.supervision import beside, contained
from runtime.server.life.heap import freeze_heap, keep, uncollected
from runtime.text.prompt import PromptRenderer
from runtime.text.replies.reply_format import PLAIN, ReplyFormat
from runtime.text.thought import THINKS, WAY_OUT

log = structlog.get_logger(__name__)

TOKENIZER_THREADS = 2


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded.

    Attributes:
        metadata: the artifact's.
        serving: what is served of it, and how.
        chat: the chat model; none where only the classifier is served.
        classifier: none where only the chat model is.
    """

    metadata: BuildMetadata
    serving: ServingPlan
    chat: Chat | None
    classifier: ToolClassifier | None


class Loader:
    """Loads what a server answers with, and lets go of it again.

    Args:
        settings: the environment.
        timeline: where the time of the start goes.
        tell: called with what is done now.

    Attributes:
        engine: to be shut down; none before it is made.
        classifier: likewise.
        view: the artifact's files as the engine reads them, to be removed; none before it is there.
        pool: renders prompts that would hold up the event loop.
    """

    def __init__(self, settings: RuntimeSettings, timeline: Timeline, tell: Callable[[str], None]) -> None:
        self._settings = settings
        self._timeline = timeline
        self._tell = tell
        self.engine: Engine | None = None
        self.classifier: ToolClassifier | None = None
        self.view: View | None = None
        self.pool = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenizer")

    async def load(self) -> Loaded:
        """Check the artifact and load its models.

        Raises:
            ArtifactError: the artifact cannot be served here.
            SettingsError: the settings do not fit the artifact.
        """
        with uncollected():
            return await self._load()

    async def _load(self) -> Loaded:
        self._timeline.enter("fetch")
        folder, fetched_on = await asyncio.to_thread(self._folder)
        self._tell("checking the artifact")
        self._timeline.enter("check")
        described = await asyncio.to_thread(artifact.read, folder)
        serving = plan(self._settings, described)
        view, metadata, here = await self._check(folder, fetched_on, described, serving)
        self._timeline.enter("settle")
        keep()  # the engine's processes, which inherit all that is imported, need not go through it either
        if not same(metadata, described):
            raise ArtifactError(f"{folder}: expected what was read first, found that it changed; start again")
        logs.take_over()  # the engine's library has been imported, and its processes inherit what it does
        try:
            # What is not the listed file is told at once, and before what it did to those that load it.
            _, chat = await beside(
                partial(asyncio.to_thread, view.proven),
                partial(self._load_models, view, metadata, serving, here),
                partial(self._left, "proof", "proving the weights"),
            )
        except ArtifactError as error:
            raise ArtifactError(str(error).replace(str(view.folder), str(folder))) from error
        self._timeline.enter("settle")
        await asyncio.to_thread(view.settle)
        logs.take_over()
        freeze_heap()
        return Loaded(metadata, serving, chat, self.classifier)

    async def discard_view(self) -> None:
        """Remove the view of the artifact's files."""
        if self.view is not None:
            await asyncio.to_thread(self.view.close)

    async def close(self) -> None:
        """Stop everything that was loaded."""
        try:
            if self.engine is not None:
                await self.engine.shutdown()
        finally:
            try:
                if self.classifier is not None:
                    await self.classifier.shutdown()
            finally:
                self.pool.shutdown(wait=False, cancel_futures=True)
                await self.discard_view()

    def _folder(self) -> tuple[Path, Machine | None]:
        """Where the artifact lies, fetched first where it is named on the hub; and for which machine that was done."""
        settings = self._settings
        name = settings.artifact or ""
        if not named_on_hub(name):
            return Path(name), None
        from runtime.artifact.fetch import Fetcher, cache_folder

        self._tell("fetching the artifact")
        here = machine.describe()
        cache = settings.artifact_cache_dir or cache_folder(os.environ)
        sharing = verify.Sharing(settings.tensor_parallel_size, settings.pipeline_parallel_size)
        fetcher = Fetcher(
            cache, here, lambda line: log.info("fetch", what=line), settings.artifact_public_key_file, sharing
        )
        return fetcher.fetch(name), here

    async def _check(
        self, folder: Path, fetched_on: Machine | None, described: BuildMetadata, serving: ServingPlan
    ) -> tuple[View, BuildMetadata, Machine]:
        """Check the artifact's files while the engine is imported, which touches none; weights are hashed from then.

        Looking at the machine takes a second where it has GPUs, and so is done beside the import too.
        """
        settings, chat = self._settings, serving.chat
        with_code = settings.artifact_trust == "unsigned" or settings.artifact_public_key_file is not None
        self.view = view = await asyncio.to_thread(View, folder, described, with_code=with_code)
        _prepare_environment(allow_long_context=settings.vllm_allow_long_max_model_len)

        async def check() -> tuple[BuildMetadata, Machine]:
            here = fetched_on if fetched_on is not None else await asyncio.to_thread(machine.describe)
            checked = await asyncio.to_thread(
                verify.check_artifact,
                folder,
                here,
                batch_size=serving.batch_size,
                gpu_fraction=chat.options.gpu_fraction if chat else GPU_ALONE,
                public_key=settings.artifact_public_key_file,
                take=view.take,
                sharing=engines.sharing_of(chat.options) if chat else verify.AS_BUILT,
            )
            await asyncio.to_thread(view.prove)
            self._timeline.enter("import")  # what is left of it
            return checked, here

        async def preload() -> None:
            if chat is not None:
                await asyncio.to_thread(engines.preload, described, chat.options)

        # Contained: each is a task of its own, out of which asyncio would let a library's exit through to the process.
        (metadata, here), _ = await asyncio.gather(contained(check), contained(preload))
        return view, metadata, here

    def _left(self, phase: str, reason: str) -> None:
        """Say that nothing is waited for any more but this, which is done beside the rest."""
        self._tell(reason)
        self._timeline.enter(phase)

    async def _load_models(
        self, view: View, metadata: BuildMetadata, serving: ServingPlan, here: Machine
    ) -> Chat | None:
        if serving.tool is not None and metadata.tool is not None:
            threads = BESIDE_CHAT_THREADS if serving.chat is not None else ALONE_THREADS
            self.classifier = _classifier(view.folder, metadata.tool, serving.tool, here.device, threads)
        # The engine first: its processes are forked from this one, imports and all, while it has not used CUDA.
        chat = await self._load_chat(view, serving.chat) if serving.chat else None
        if self.classifier is not None:
            self._left("classifier", "loading the classifier")
            await self.classifier.start()
        return chat

    async def _load_chat(self, view: View, chat: ChatServing) -> Chat:
        self._tell("loading the chat model")
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
        self.engine = engine = engines.create(view.folder, view.metadata, chat.options)
        started = asyncio.Event()

        async def start() -> None:
            try:
                await engine.start()
            finally:
                started.set()

        async def prepare() -> PromptRenderer:
            # Threads that compute are not forked with the engine's processes.
            if await _sooner(engines.apart(engine), started) and self.classifier is not None:
                self.classifier.begin()
            return await asyncio.to_thread(_renderer, view, chat)

        self._timeline.enter("spawn")
        renderer, _ = await beside(prepare, start, partial(self._left, "template", "preparing the chat template"))
        self._timeline.splice(engine.start_marks())
        form, places = _form_of(renderer), engines.places_of(view.metadata, chat.options)
        return Chat(engine, renderer, self.pool, chat.budgets, form=form, thinking=chat.thinking, places=places)


async def _sooner(awaited: Coroutine[Any, Any, None], other: asyncio.Event) -> bool:
    """Whether what is awaited is through before something else happens; it is cancelled where it is not."""
    waiting, otherwise = asyncio.ensure_future(awaited), asyncio.ensure_future(other.wait())
    try:
        await asyncio.wait((waiting, otherwise), return_when=asyncio.FIRST_COMPLETED)
        return waiting.done() and waiting.result() is None
    finally:
        waiting.cancel()
        otherwise.cancel()


def _renderer(view: View, chat: ChatServing) -> PromptRenderer:
    """What makes prompts of turns; refuses a template that cannot, and settings that do not fit it."""
    try:
        renderer = PromptRenderer(view.folder, chat.budgets, chat.thinking > 0)
    except ValueError as error:
        raise ArtifactError(str(error)) from error
    form = _form_of(renderer)
    proven = view.metadata.chat.thinking_max_tokens if view.metadata.chat else defaults.THINKING_TOKENS
    if form.thinks and chat.thinking != proven:
        log.warning("thought has another budget than it was proven with", tokens=chat.thinking, proven=proven)
    if form.thinks and not chat.thinking:
        raise SettingsError([f"THINKING_MAX_TOKENS: expected {THINKS}; found 0; {WAY_OUT}"])
    return renderer


def _form_of(renderer: PromptRenderer) -> ReplyFormat:
    form: ReplyFormat = getattr(renderer, "format", PLAIN)  # a renderer that tells none has plain replies
    return form


def _classifier(folder: Path, tool: ToolModel, chosen: ToolServing, device: str, cpu_threads: int) -> ToolClassifier:
    return ToolClassifier(
        folder / tool.path,
        threshold=chosen.threshold,
        max_tokens=chosen.max_tokens,
        positive_label=tool.served_tools[0].label,
        tools=chosen.tools,
        device=device,
        gpu_fraction=chosen.gpu_fraction,
        cpu_threads=cpu_threads,
    )


def _prepare_environment(*, allow_long_context: bool) -> None:
    """Set what the engines' libraries read when they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads of ours, never a fork, run the tokenizer
    if allow_long_context:
        os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
