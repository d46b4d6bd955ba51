"""In vLLM's engine process: its executors, its step, and what its scheduler knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from runtime.engines.vllm.contract.table import EVENTS, seams

if TYPE_CHECKING:
    from vllm.v1.executor import Executor

Core = Any  # an `EngineCore`, which is untyped to us
Step = Callable[[Core], tuple[Any, bool]]


def executors() -> tuple[type[Executor], ...]:
    """vLLM's executor for one worker in the engine's process, and the one for several.

    The executor's class is the one object that vLLM hands over to its engine process by reference, so a subclass brings
    along the module that defines it.
    """
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return UniProcExecutor, MultiprocExecutor


def answer(method: str, function: Callable[[Core], Any]) -> None:
    """Add a method to `EngineCore`, which looks up by its name what is asked of it (`ask_core`)."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, method, function)


def change_step(change: Callable[[Step], Step]) -> None:
    """Put another in the place of the engine's step, the form of it that has a queue of batches."""
    from vllm.v1.engine.core import EngineCore

    EngineCore.step_with_batch_queue = change(EngineCore.step_with_batch_queue)


def scheduler_figures(core: Core) -> tuple[int, int, float]:
    """Requests that run, requests that wait, and the used part of the KV cache (0 to 1)."""
    running, waiting = core.scheduler.get_request_counts()
    return running, waiting, core.scheduler.kv_cache_manager.usage


def batches(core: Core) -> int:
    """Batches that are on the GPU."""
    return len(core.batch_queue)


def arrival(core: Core) -> Callable[[], bool] | None:
    """What tells whether the oldest batch's tokens are here; none without a new request in it, or where that is hidden.

    It shows where tokens are copied from one GPU, which ends with an event.
    """
    try:
        future, scheduled = core.batch_queue[0][:2]
        output = getattr(future, "async_output", None)
        if not scheduled.scheduled_new_reqs or output is None:
            return None
        event = next(event for name in EVENTS if (event := getattr(output, name, None)) is not None)
        return event.query  # type: ignore[no-any-return]
    except (AttributeError, TypeError, ValueError, LookupError, StopIteration) as error:
        seams.give_up(
            "first token", f"expected a batch whose tokens come with one of {EVENTS}, found another ({error!r})"
        )
        return None


def lost_a_rank(executor: Any) -> bool:  # noqa: ANN401 - vLLM is untyped to us
    """Whether one of an executor's processes died, which vLLM notices before it ends the others."""
    return bool(executor.is_failed)


@contextmanager
def nothing_to_schedule(core: Core) -> Iterator[None]:
    """Have a step schedule nothing: it takes the oldest batch's result, and does all that belongs to it."""
    core.scheduler.has_requests = lambda: False
    try:
        yield
    finally:
        del core.scheduler.has_requests
