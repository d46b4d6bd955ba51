"""What this project adds to vLLM's engine process: a question about its scheduler, and sooner first tokens.

vLLM publishes scheduler figures only together with a step's outputs, so an idle engine says nothing and the last
figures may be stale; publishing them also costs time for every token. A utility call is answered by the engine's own
loop, after every abort that was sent before it, so one is added.

An engine that begins from silence prepares its second step before it looks whether the first has a result. That keeps
the GPU busy later on, but a short prompt's first step can be over by then, and its token waits for the preparation. So
the first step's result is taken first, where it is about to be there. docs/performance.md has the figures.

The module must be imported inside the engine process, whether that was forked or spawned, and before its `EngineCore`
is made: the subclasses of vLLM's executors defined here bring it along (`contract.executors`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from runtime.engines.vllm import contract
from runtime.engines.vllm.contract import Core, Step

METHOD = "scheduler_load"

# About as long as preparing a step takes: waiting longer would delay the second token for nothing.
FIRST_TOKEN_WAIT_S = 0.002


def first_token_first(step: Step) -> Step:
    """The engine's step, which tells a lone new batch's tokens before it prepares the next batch.

    Elsewhere it does what it did. Where a step's tokens cannot be seen to arrive (several GPUs, a CPU), that is
    everywhere.
    """

    @wraps(step)
    def stepped(core: Core) -> tuple[Any, bool]:
        if not contract.seams.holds("first token"):
            return step(core)
        silent = not contract.batches(core)
        outputs, executed = step(core)
        if not silent or outputs is not None or contract.batches(core) != 1:
            return outputs, executed
        arrived = contract.arrival(core)
        if arrived is not None and _soon(arrived):
            with contract.nothing_to_schedule(core):
                outputs, _ = step(core)
        return outputs, executed

    return stepped


def _soon(arrived: Callable[[], bool]) -> bool:
    """Whether a step's tokens are here, or come in a moment."""
    until = time.perf_counter() + FIRST_TOKEN_WAIT_S
    while not (here := arrived()) and time.perf_counter() < until:
        time.sleep(0)  # lets the thread that reads requests run
    return here


if contract.seams.holds("load"):
    contract.answer(METHOD, contract.scheduler_figures)
if contract.seams.holds("first token"):
    contract.change_step(first_token_first)

UniProcExecutor, MultiprocExecutor = contract.executors()


class ObservedUniProcExecutor(UniProcExecutor):  # type: ignore[misc, valid-type]
    """vLLM's executor for one GPU, defined here so that the engine process imports this module."""


class ObservedMultiprocExecutor(MultiprocExecutor):  # type: ignore[misc, valid-type]
    """vLLM's executor for several workers, defined here so that the engine process imports this module."""


OBSERVED = {UniProcExecutor: ObservedUniProcExecutor, MultiprocExecutor: ObservedMultiprocExecutor}


def observed(executor: type) -> type:
    """What takes the place of vLLM's executor."""
    return OBSERVED.get(executor, executor)
