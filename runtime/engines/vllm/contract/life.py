"""An engine's life in the server's process: what is imported for it, how its processes start, and how they end."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from runtime.engines import EngineOptionError
from runtime.engines.vllm import threads
from runtime.engines.vllm.contract.table import FORK, METHOD, POOL, seams

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor import Executor

log = logging.getLogger(__name__)

# Libraries that this process was started with; vLLM adds its own to the variable, for processes that it spawns.
PRELOADED = os.environ.get("LD_PRELOAD", "")

# vLLM's handler of outputs is told to end, and has nothing more to do.
HANDLER_ENDS_S = 5.0


def preload() -> None:
    """Import what starting an engine will need, which takes seconds."""
    importlib.import_module("vllm.v1.engine.async_llm")
    importlib.import_module("vllm.v1.executor")


def on_cpu() -> bool:
    """Whether vLLM was built for a CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def llm_class() -> type[AsyncLLM]:
    """vLLM's `AsyncLLM`, which says nothing at the interpreter's end."""
    from vllm.v1.engine.async_llm import AsyncLLM

    if not seams.holds("quiet end"):
        return AsyncLLM  # type: ignore[no-any-return]

    class Quiet(AsyncLLM):  # type: ignore[misc]
        def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
            # vLLM's own would fail on modules that are gone already, and print that.
            if not finalizing():
                super().__del__()

    return Quiet


def start(
    arguments: AsyncEngineArgs, executors: Callable[[type[Executor]], type[Executor]], *, statistics: bool = False
) -> AsyncLLM:
    """An engine, loaded; `executors` says which class takes the place of vLLM's executor.

    vLLM's own statistics stay off unless they are wanted, because they cost time for every token.

    Raises:
        EngineOptionError: so many GPUs cannot share the model.
    """
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.executor import Executor

    method = os.environ.get(METHOD)
    try:
        config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
    except (ValueError, NotImplementedError) as error:  # the latter where a model's code knows no stages
        shared = arguments.tensor_parallel_size, arguments.pipeline_parallel_size
        if shared == (1, 1):
            raise
        raise EngineOptionError(
            f"TENSOR_PARALLEL_SIZE, PIPELINE_PARALLEL_SIZE: expected numbers by which vLLM can share the model, "
            f"found {shared[0]} and {shared[1]}; {_reason(error)}"
        ) from error
    executor = executors(Executor.get_class(config))
    forks = _may_fork(arguments, method) and _quiet()
    with _started_by(FORK if forks else os.environ.get(METHOD), afterwards=method), _one_tokenizer():
        return llm_class()(config, executor, log_stats=statistics, log_requests=False)


def _may_fork(arguments: AsyncEngineArgs, method: str | None) -> bool:
    """Whether an engine for a CPU can be forked from this process, with all that it has imported.

    vLLM spawns it, so that OpenMP reads the variables that are set for each worker. For one worker, `threads.bind` does
    what they say. Not where the operator has chosen otherwise, in Ray's processes, with an OpenMP of the operator's, or
    where what changes workers has been imported here: in a forked one it would not be imported again.
    """
    alone = (arguments.tensor_parallel_size, arguments.pipeline_parallel_size) == (1, 1)
    changed = (arguments.worker_extension_cls or "").rpartition(".")[0]
    imported = changed in sys.modules or "ray" in sys.modules
    return alone and on_cpu() and method in (None, FORK) and not imported and "omp" not in PRELOADED


def _quiet() -> bool:
    """Whether no other thread computes, so that nothing is left locked in a process that is forked now."""
    if threads.quiet():
        return True
    log.warning("a thread of this process computes; the engine's processes are spawned, which takes longer")
    return False


@contextmanager
def _started_by(method: str | None, *, afterwards: str | None) -> Iterator[None]:
    """Have vLLM start its processes so, and leave the variable to the next engine as the operator had it."""
    _set_method(method)
    try:
        yield
    finally:
        _set_method(afterwards)


@contextmanager
def _one_tokenizer() -> Iterator[None]:
    """Have vLLM make no copies of its tokenizer, for threads that turn prompts into tokens: ours are tokens already."""
    if not seams.holds("one tokenizer"):
        yield
        return
    renderers = importlib.import_module("vllm.renderers.hf")
    pool = getattr(renderers, POOL)
    setattr(renderers, POOL, lambda tokenizer, *_: tokenizer)
    try:
        yield
    finally:
        setattr(renderers, POOL, pool)


def _set_method(method: str | None) -> None:
    if method is None:
        os.environ.pop(METHOD, None)
    else:
        os.environ[METHOD] = method


def forked() -> bool:
    """Whether this process of vLLM's was forked from the one that started it."""
    return os.environ.get(METHOD) == FORK


def _reason(error: Exception) -> str:
    """What vLLM's check of a configuration says, in one line; pydantic wraps it in others."""
    told: list[Any] = getattr(error, "errors", list)()
    text = str(told[0]["msg"]).removeprefix("Value error, ") if told else str(error)
    return " ".join(text.split()).rstrip(".")


@cache
def dead() -> type[Exception]:
    """vLLM's error for an engine that died. Called where one is caught: a turn that goes well imports nothing."""
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineDeadError  # type: ignore[no-any-return]


async def shut_down(llm: AsyncLLM) -> None:
    """Stop vLLM's processes, and end what still waits for outputs.

    The handler of outputs is ended first: it takes the end of the engine's process for its death, and logs that.
    """
    known = seams.holds("end of requests")
    try:
        if known and llm.output_handler is not None:
            llm.output_handler.cancel()
            await asyncio.wait((llm.output_handler,), timeout=HANDLER_ENDS_S)
    finally:  # nobody could do it again
        await asyncio.to_thread(llm.shutdown)
    if known:
        llm.output_processor.propagate_error(dead()())
