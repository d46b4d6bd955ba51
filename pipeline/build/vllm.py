"""Building for the vLLM lanes: the model's files at the artifact's root, and what vLLM compiles at its first start."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.build.layout import COMPILE_CACHE, copy_model
from pipeline.stages.stage import StageError
from runtime.engines import EngineDeadError, EngineOptions
from runtime.engines.tuned import with_choices

if TYPE_CHECKING:
    from pipeline.plan import BuildPlan
    from pipeline.progress import Progress
    from runtime.artifact import EngineChoices, Limits

# Bookkeeping of the compilers that names this machine, changes from start to start, and that no start needs; and which
# GPUs of this machine reach one another's memory, which another's may not.
NOT_KEPT = ("*.lock", "*.tmp", "*.partial", "*.log", ".*", "gpu_p2p_access_cache_for_*.json")


def build(model_dir: Path, out: Path, *, source: Path, plan: BuildPlan, progress: Progress) -> None:
    """Copy the model to the artifact's root, and compile ahead of time unless the engine runs eagerly.

    Args:
        model_dir: the quantized model, or a source that needs no quantizing: a Hugging Face folder.
        out: an empty folder.
        source: the model as it came; its companions travel with the quantized model already.
        plan: its lane and limits decide whether and for what is compiled.
        progress: told of each step.

    Raises:
        StageError: the folder is no model, or vLLM could not compile it.
    """
    del source
    progress.step("laying out the model")
    copy_model(model_dir, out)
    if not plan.eager:
        progress.step("compiling ahead of time")
        compile_ahead(out, ways(_limits(plan, out), plan.choices))


def _limits(plan: BuildPlan, out: Path) -> Limits:
    if plan.chat is None:
        raise StageError("build", "expected a chat model to compile, found none", out)
    return plan.chat.limits


def ways(limits: Limits, choices: EngineChoices | None = None) -> list[EngineOptions]:
    """How the engine may be started with an artifact: as it is, and with what tuning chose.

    The plain options serve where anything differs from what was tuned, or the operator says so.
    """
    options = EngineOptions(
        max_num_seqs=limits.max_batch_size,
        max_model_len=limits.max_model_len,
        tensor_parallel_size=limits.tensor_parallel_size,
        pipeline_parallel_size=limits.pipeline_parallel_size,
        enforce_eager=False,
    )
    return list(dict.fromkeys((options, with_choices(options, choices) if choices else options)))


def compile_ahead(out: Path, ways: Sequence[EngineOptions]) -> None:
    """Start the engine each way, on one empty cache inside the artifact, so that it leaves there what it compiled."""
    from runtime.engines.vllm.caches import PLACEHOLDER_FOLDER, relocate
    from runtime.engines.vllm.engine import VllmEngine

    async def start_and_stop() -> None:
        for way in ways:
            engine = VllmEngine(out, way)
            try:
                await engine.start()
            finally:
                await engine.shutdown()

    cache = out / COMPILE_CACHE
    cache.mkdir()
    with _caches_in(cache):
        try:
            asyncio.run(start_and_stop())
        except (EngineDeadError, RuntimeError, ValueError, OSError) as error:
            first = str(error).strip().partition("\n")[0] or type(error).__name__
            raise StageError("build", f"vLLM did not compile: {first}", out, "read its last lines above") from error
    for pattern in NOT_KEPT:
        for path in list(cache.rglob(pattern)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    try:
        relocate(cache, PLACEHOLDER_FOLDER)
    except ValueError as error:
        raise StageError("build", str(error), out) from error


@contextmanager
def _caches_in(folder: Path) -> Iterator[None]:
    """Point the compilers' caches to a folder, through the environment that they read."""
    from runtime.engines.vllm.caches import caches

    variables = caches(folder)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
