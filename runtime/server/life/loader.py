"""The loader: checks an artifact, and makes of it the models that a server answers with."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from runtime.host.supervision import contained
from runtime.server.life.heap import freeze_heap, keep, uncollected
from runtime.text.prompt import PromptRenderer
from runtime.text.replies.channels import PLAIN, ReplyFormat
from runtime.text.thought import THINKS, WAY_OUT

log = structlog.get_logger(__name__)

TOKENIZER_THREADS = 2
# What loading has to put itself in order, where it is of no use any more.
LEAVE_S = 1.0


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
            chat = await self._prove_beside(view, partial(self._load_models, view, metadata, serving, here))
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

    async def _prove_beside(self, view: View, load: Callable[[], Awaitable[Chat | None]]) -> Chat | None:
        """Load the models while their weights are hashed; return when both are through.

        What is not the listed file is told at once, and before what it did to those that load it.
        """
        proof = asyncio.ensure_future(contained(lambda: asyncio.to_thread(view.proven)))
        loading = asyncio.ensure_future(contained(load))
        try:
            await asyncio.wait((proof, loading), return_when=asyncio.FIRST_COMPLETED)
            if not proof.done():
                self._tell("proving the weights")
                self._timeline.enter("proof")  # what is left of it
            await proof
            return await loading
        finally:
            for task in (proof, loading):
                task.add_done_callback(_hear)
                task.cancel()
            await asyncio.wait((proof, loading), timeout=LEAVE_S)

    async def _load_models(
        self, view: View, metadata: BuildMetadata, serving: ServingPlan, here: Machine
    ) -> Chat | None:
        if serving.tool is not None and metadata.tool is not None:
            beside = BESIDE_CHAT_THREADS if serving.chat is not None else ALONE_THREADS
            self.classifier = _classifier(view.folder, metadata.tool, serving.tool, here.device, beside)
        # The engine first: its processes are forked from this one, imports and all, while it has not used CUDA.
        chat = await self._load_chat(view, serving.chat) if serving.chat else None
        if self.classifier is not None:
            self._tell("loading the classifier")
            self._timeline.enter("classifier")  # what is left of it
            await self.classifier.start()
        return chat

    async def _load_chat(self, view: View, chat: ChatServing) -> Chat:
        self._tell("loading the chat model")
        self._timeline.enter("template")
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
        self.engine = engine = engines.create(view.folder, view.metadata, chat.options)
        self._timeline.enter("spawn")
        beside = asyncio.ensure_future(self._begin_beside(engine))
        try:
            await engine.start()
        finally:
            beside.cancel()
        self._timeline.splice(engine.start_marks())
        places = engines.places_of(view.metadata, chat.options)
        return Chat(engine, renderer, self.pool, chat.budgets, form=form, thinking=chat.thinking, places=places)

    async def _begin_beside(self, engine: Engine) -> None:
        """Have the classifier load beside an engine that starts, from when the engine's processes are its own on."""
        if self.classifier is not None:
            await engines.apart(engine)
            self.classifier.begin()


def _hear(task: asyncio.Task[object]) -> None:
    """Hear what a task that nobody waits for any more failed with: there was something to tell before."""
    if not task.cancelled():
        task.exception()


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
