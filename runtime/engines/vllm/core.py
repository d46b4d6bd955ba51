"""What this project adds to vLLM's engine process: a question about its scheduler, and sooner first tokens.

vLLM publishes scheduler figures only together with a step's outputs, so an idle engine says nothing and the last
figures may be stale; publishing them also costs time for every token. A utility call is answered by the engine's own
loop, after every abort that was sent before it. `EngineCore` looks the called method up by name on itself, therefore it
is added here.

An engine that begins from silence prepares its second step before it looks whether the first has a result. That keeps
the GPU busy later on, but a short prompt's first step can be over by then, and its token waits for the preparation. So
the first step's result is taken first, where it is about to be there. docs/performance.md has the figures.

The module must be imported inside the engine process, whether that was forked or spawned, and before its `EngineCore`
is made. The executor class is the one object that vLLM hands over to that process by reference, so subclasses defined
here bring the module along.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

METHOD = "scheduler_load"

# About as long as preparing a step takes: waiting longer would delay the second token for nothing.
FIRST_TOKEN_WAIT_S = 0.002

# What vLLM's two model runners for GPUs call the event after which a step's tokens have arrived.
EVENTS = ("copy_event", "async_copy_ready_event")

Step = Callable[[Any], tuple[Any, bool]]


def scheduler_load(core: Any) -> tuple[int, int, float]:  # noqa: ANN401 - EngineCore is untyped to us
    """Requests that run, requests that wait, and the used part of the KV cache (0 to 1)."""
    running, waiting = core.scheduler.get_request_counts()
    return running, waiting, core.scheduler.kv_cache_manager.usage


def first_token_first(step: Step) -> Step:
    """`EngineCore.step_with_batch_queue`, which tells a lone new batch's tokens before it prepares the next batch.

    Elsewhere it does what it did. Where a step's tokens cannot be seen to arrive (several GPUs, a CPU), that is
    everywhere.
    """

    @wraps(step)
    def stepped(core: Any) -> tuple[Any, bool]:  # noqa: ANN401 - EngineCore is untyped to us
        silent = not core.batch_queue
        outputs, executed = step(core)
        if not silent or outputs is not None or len(core.batch_queue) != 1:
            return outputs, executed
        future, scheduled = core.batch_queue[0][:2]
        if not scheduled.scheduled_new_reqs or not _arrives(future):
            return outputs, executed
        # With nothing to schedule, vLLM's own step takes the oldest batch's result, and does all that belongs to it.
        core.scheduler.has_requests = lambda: False
        try:
            outputs, _ = step(core)
        finally:
            del core.scheduler.has_requests
        return outputs, executed

    return stepped


def _arrives(future: Any) -> bool:  # noqa: ANN401 - vLLM's, for what is still on the GPU
    """Whether a step's tokens are here, or come in a moment."""
    output = getattr(future, "async_output", None)
    event = next((event for name in EVENTS if (event := getattr(output, name, None)) is not None), None)
    if event is None:
        return False
    until = time.perf_counter() + FIRST_TOKEN_WAIT_S
    while not (here := event.query()) and time.perf_counter() < until:
        time.sleep(0)  # lets the thread that reads requests run
    return bool(here)


setattr(EngineCore, METHOD, scheduler_load)
EngineCore.step_with_batch_queue = first_token_first(EngineCore.step_with_batch_queue)


class ObservedUniProcExecutor(UniProcExecutor):  # type: ignore[misc]
    """vLLM's executor for one GPU, defined here so that the engine process imports this module."""


class ObservedMultiprocExecutor(MultiprocExecutor):  # type: ignore[misc]
    """vLLM's executor for several workers, defined here so that the engine process imports this module."""


OBSERVED = {UniProcExecutor: ObservedUniProcExecutor, MultiprocExecutor: ObservedMultiprocExecutor}
