"""Runs stages for every command: the models' sources, and the float model's scores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib import metadata as distributions
from pathlib import Path
from typing import Any

from pipeline import source
from pipeline.lanes import Lane
from pipeline.progress import Progress
from pipeline.source import SourceFacts
from pipeline.stages.disk import refusal_text
from pipeline.stages.recipes import recipe_of
from pipeline.stages.stage import Stage, StageCache, StageError, StageResult
from runtime.artifact import ArtifactError, Limits, hub, hub_client
from runtime.engines import EngineOptions
from runtime.host.machine import Machine

# Of weights beyond this the hashing is told: it takes more than some seconds.
TOLD_BYTES = 4 << 30
# Stages that compute in this process, and start no engine.
COMPUTING_HERE = frozenset({"source", "calibration", "tool"})
WAIT_POLICY = "OMP_WAIT_POLICY"

Work = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model whose files are on this machine.

    Attributes:
        folder: where they lie.
        content: hash of those that decide its answers.
    """

    folder: Path
    content: str


@dataclass(slots=True)
class StageRunner:
    """Runs stages through one cache, each at most once.

    Attributes:
        cache: folder of finished stages.
        machine: what measurements depend on.
        progress: told of each step.
        force: whether finished stages are done again.
        finished: results so far, in order.
    """

    cache: Path
    machine: Machine
    progress: Progress
    force: bool = False
    finished: list[StageResult] = field(default_factory=list)

    def stage(self, name: str, inputs: Mapping[str, Any], work: Work) -> StageResult:
        """Run one stage, at most once in this runner's life.

        Raises:
            StageError: it failed.
        """
        stage = Stage(name, inputs, work)
        if earlier := next((done for done in self.finished if done.key == stage.key), None):
            return earlier
        self.progress.step(name)
        with sleeping_threads() if name in COMPUTING_HERE else nullcontext():
            done = self._cache.run(stage, self.progress)
        self.progress.step(f"{name}: {'done before, in' if done.reused else 'done in'} {done.seconds:.1f} s")
        self.finished.append(done)
        return done

    def known(self, name: str, inputs: Mapping[str, Any]) -> StageResult | None:
        """Return the result of a stage that was done before; none where it was not, or is to be done again."""
        return self._cache.find(Stage(name, inputs, _nothing), self.progress)

    def keep(self, name: str, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Keep a result that has no files; what was made before it is no part of an artifact."""
        self._cache.run(Stage(name, inputs, lambda _: result), self.progress)

    def forget(self, name: str, inputs: Mapping[str, Any]) -> None:
        """Let go of a result."""
        self._cache.forget(Stage(name, inputs, _nothing))

    @property
    def _cache(self) -> StageCache:
        return StageCache(self.cache, force=self.force)

    def model(self, folder: Path) -> FetchedModel:
        """Return a model's folder with the hash of its content.

        Raises:
            StageError: a file cannot be read.
        """
        try:
            return FetchedModel(folder, source.content_hash(folder))
        except OSError as error:
            where, again = error.filename or folder, "see that this user may read it, then run the same command again"
            raise StageError("source", refusal_text(error), where, again) from error

    def chat_source(self, facts: SourceFacts) -> FetchedModel:
        """Return the chat model as it comes: fetched, or exported for the embedded one."""
        if facts.kind != "embedded":
            return self._fetch("source", facts)
        inputs = {
            "code": recipe_of("source"),
            "packages": versions("torch", "transformers", "tokenizers", "gguf"),
        }
        return self.model(self.stage("source", inputs, self._export_chat).output)

    def tool_source(self, facts: SourceFacts) -> tuple[FetchedModel, Mapping[str, Any]]:
        """Return the classifier, and its evaluation where it was trained here, as the embedded one is."""
        if facts.kind != "embedded":
            return self._fetch("tool", facts), {}
        inputs = {
            "code": recipe_of("tool"),
            "packages": versions("torch", "transformers", "tokenizers"),
        }
        done = self.stage("tool", inputs, self._train_tool)
        return self.model(done.output), done.result

    def reference(self, model: FetchedModel, lane: Lane, limits: Limits, *, dtype: str) -> Path:
        """Score held-out text with the float model, and return the file of scores.

        The model computes in `dtype`, as the artifact does: float32 and bfloat16 alone do not always agree. It is
        shared by as many GPUs, since one may be too small for it.
        """
        engine, dtype = lane.engine, lane.reference_dtype(dtype)
        from pipeline.validate.chat_figures import measure_reference

        context = limits.max_model_len
        options = EngineOptions(
            max_model_len=context,
            tensor_parallel_size=limits.tensor_parallel_size,
            pipeline_parallel_size=limits.pipeline_parallel_size,
            enforce_eager=lane.eager or None,
            dtype=dtype,
        )
        inputs = {
            "content": model.content,
            "code": recipe_of("reference", engine),
            "lane": lane.name,
            "context": context,
            "machine": self.identity(),
            "dtype": dtype,
            "packages": tokenizing(),
        }
        if limits.gpus > 1:
            inputs["shared"] = [limits.tensor_parallel_size, limits.pipeline_parallel_size]

        def work(out: Path) -> Mapping[str, Any]:
            measure_reference(model.folder, out / "scores.json", options=options, engine=engine, progress=self.progress)
            return {}

        return self.stage("reference", inputs, work).output / "scores.json"

    def identity(self) -> dict[str, Any]:
        """Return what of this machine decides a measurement, for a stage's key."""
        gpus = [gpu.name for gpu in self.machine.gpus]
        return {"sm": self.machine.sm, "gpus": gpus, "packages": self.machine.packages}

    def engine_identity(self) -> dict[str, Any]:
        """Return what of this machine decides how fast an engine is and what it compiles: driver and memory too."""
        memory = [gpu.memory_bytes for gpu in self.machine.gpus]
        return self.identity() | {"driver": self.machine.driver, "memory": memory}

    def _fetch(self, name: str, facts: SourceFacts) -> FetchedModel:
        try:
            folder = source.fetch(facts, self.progress)
            if facts.weight_bytes > TOLD_BYTES:
                self.progress.step(f"{name}: hashing {facts.name} ({facts.weight_bytes / 2**30:.1f} GiB)")
            return FetchedModel(folder, source.content_hash(folder, facts.hashes))
        except hub.TokenError as error:
            raise StageError(name, f"expected {error.expected}, found {error.found}", error.variables) from error
        except hub_client.failures(ArtifactError) as error:
            why = str(error) if isinstance(error, ArtifactError) else hub.reason(error)
            again = "run the same command again; a download resumes"
            raise StageError(name, f"the model could not be read: {why}", facts.ref, again) from error

    def _export_chat(self, out: Path) -> Mapping[str, Any]:
        from pipeline.embedded.chat import export_chat
        from pipeline.embedded.packages import EmbeddedModelError

        try:
            export_chat(out, self.progress)
        except EmbeddedModelError as error:
            raise StageError("source", str(error)) from error
        return {}

    def _train_tool(self, out: Path) -> Mapping[str, Any]:
        from pipeline.embedded.packages import EmbeddedModelError
        from pipeline.embedded.tool import train_tool

        try:
            return asdict(train_tool(out, self.progress))
        except EmbeddedModelError as error:
            raise StageError("tool", str(error)) from error


@contextmanager
def sleeping_threads() -> Iterator[None]:
    """Let the threads of a PyTorch that is loaded within sleep while they wait for each other.

    By default they spin, and where others use the processor too they take it from those they wait for: training then
    takes several times as long. OpenMP reads its policy once, when it is loaded. Afterwards the variable is gone again,
    so that an engine that this process starts, or becomes, is measured and served with its own default.
    """
    if WAIT_POLICY in os.environ:
        yield
        return
    os.environ[WAIT_POLICY] = "PASSIVE"
    try:
        yield
    finally:
        os.environ.pop(WAIT_POLICY, None)


def _nothing(out: Path) -> Mapping[str, Any]:
    return {}


def tokenizing() -> dict[str, str]:
    """Return the versions that decide which tokens a text is, and what the classifier computes of them."""
    return versions("torch", "transformers", "tokenizers", "jinja2")


def versions(*names: str) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = distributions.version(name)
        except distributions.PackageNotFoundError:
            continue
    return found
