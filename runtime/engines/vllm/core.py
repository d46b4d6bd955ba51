"""What this project adds to vLLM's engine process: a question about its scheduler, and sooner first tokens.

vLLM publishes scheduler figures only together with a step's outputs, so an idle engine says nothing and the last
figures may be stale; publishing them also costs time for every token. A utility call is answered by the engine's own
loop, after every abort that was sent before it, so one is added.

An engine that begins from silence prepares its second step before it looks whether the first has a result. That keeps
the GPU busy later on, but a short prompt's first step can be over by then, and its token waits for the preparation. So
the first step's result is taken first, where it is about to be there. docs/performance.md has the figures.

With several GPUs, steps are prepared in processes of their own, and the engine's passes on what is scheduled: it looks
for a step's tokens at once, so that there is no wait to shorten. Their end is another matter. When one has died, vLLM
lets the others finish what they do, which they cannot: they wait for the dead one in every layer. And at a shutdown it
waits for them as long as the engine's process is given itself, which is then killed without having seen them end.

The module must be imported inside the engine process, whether that was forked or spawned, and before its `EngineCore`
is made: the subclasses of vLLM's executors defined here bring it along (`contract.executors`).
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from multiprocessing.process import BaseProcess
from typing import Any

from runtime.engines.vllm import contract, memory_plan
from runtime.engines.vllm.arguments import ANY_GRAPHS, FEW_GRAPHS
from runtime.engines.vllm.context import open_beside
from runtime.engines.vllm.contract import Core, Step
from runtime.engines.vllm.lifeline import end_with_parent

log = logging.getLogger(__name__)

METHOD = "scheduler_load"
# Tells when the phases of the start began.
MARKS = "start_marks"

# About as long as preparing a step takes: waiting longer would delay the second token for nothing.
FIRST_TOKEN_WAIT_S = 0.002

# What the ranks have to end by themselves at a shutdown, and what a killed one takes to be gone. Together less than the
# 5 s after which vLLM kills the engine's process, which waits for them.
RANKS_END_S = 3.0
KILLED_S = 1.0


def first_token_first(step: Step) -> Step:
    """The engine's step, which tells a lone new batch's tokens before it prepares the next batch.

    Elsewhere it does what it did. Where a step's tokens do not come from one GPU (several, a CPU), that is everywhere.
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


def end_ranks(processes: Sequence[BaseProcess], patience: float) -> None:
    """Wait until processes that were told to end have ended, and kill those that have not by then."""
    until = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    left = [process for process in processes if process.is_alive()]
    for process in left:
        process.kill()
    until = time.monotonic() + KILLED_S
    for process in left:
        process.join(max(0.0, until - time.monotonic()))


if contract.seams.holds("load"):
    contract.answer(METHOD, contract.scheduler_figures)
    contract.answer(MARKS, lambda core: list(_marks))
if contract.seams.holds("first token"):
    contract.change_step(first_token_first)

UniProcExecutor, MultiprocExecutor = contract.executors()


def planned(executor: Any, measure: Callable[[], Any]) -> Any:  # noqa: ANN401 - vLLM's own
    """What is left for the KV cache of each of an executor's ranks, by a plan, or measured and kept as one."""
    here = memory_plan.folder()
    if here is None or contract.on_cpu() or not contract.seams.holds("memory plan"):
        return measure()
    try:
        facts = executor.collective_rpc("memory_facts")
        if not facts or None in facts:
            return measure()
        sizes = memory_plan.expected(here, facts)
        if sizes is not None:
            executor.collective_rpc("expect_cache", args=(sizes,))
            log.info("memory plan taken: %s MiB of KV cache", ", ".join(str(size >> 20) for size in sizes))
    except Exception as error:  # noqa: BLE001 - what is only sooner keeps nobody from being served
        contract.seams.give_up("memory plan", repr(error))
        return measure()
    measured = measure()
    if sizes is None:
        memory_plan.keep(here, facts, measured)
    return measured


class Timed:
    """Notes when vLLM asks its executor for each step of a start: its public methods, whichever of them it has."""

    def determine_available_memory(self) -> Any:  # noqa: ANN401 - vLLM's own
        """Note that what is free beside weights and activations is measured, or taken from a plan that fits."""
        _mark("profile")
        return planned(self, super().determine_available_memory)  # type: ignore[misc]

    def initialize_from_config(self, *arguments: Any, **words: Any) -> Any:  # noqa: ANN401 - vLLM's own
        """Note that the KV cache is laid out; up to vLLM 0.30 graphs are captured in it too."""
        _mark("cache")
        return super().initialize_from_config(*arguments, **words)  # type: ignore[misc]

    def compile_or_warm_up_model(self, *arguments: Any, **words: Any) -> Any:  # noqa: ANN401 - vLLM's own
        """Note that kernels are made ready, and graphs captured."""
        _mark("graphs")
        outcome = super().compile_or_warm_up_model(*arguments, **words)  # type: ignore[misc]
        _mark("connect")
        return outcome


def _stand_alone() -> None:
    """Part this process from the server's where it was forked: signals to it are not told to the server's loop."""
    signal.set_wakeup_fd(-1)
    gc.enable()  # the server looks for no garbage while it loads
    # The server's log is its own here too, and torch tells all that it does; vLLM's loggers have vLLM's level.
    logging.getLogger("torch").setLevel(logging.WARNING)
    end_with_parent()


# Of the engine's process, from the time that its model began to load.
_marks: list[tuple[float, str]] = []


def _mark(phase: str) -> None:
    _marks.append((time.monotonic(), phase))


class ObservedUniProcExecutor(Timed, UniProcExecutor):  # type: ignore[misc, valid-type]
    """vLLM's executor for one GPU, defined here so that the engine process imports this module."""

    def _init_executor(self) -> None:
        _stand_alone()  # this is the engine's process, and no weight has been read yet
        if not contract.on_cpu():
            open_beside()  # its one GPU, on which vLLM begins when it has imported its worker
        _mark("weights")
        super()._init_executor()

    def compile_or_warm_up_model(self, *arguments: Any, **words: Any) -> Any:  # noqa: ANN401 - vLLM's own
        """As ever; where the server is to be ready before all graphs are captured, with a few of them."""
        # vLLM's own plan would take what is captured first for what all take.
        planned_by_vllm = os.environ.get(memory_plan.OFF, "0") != "0"
        if FEW_GRAPHS in os.environ and not planned_by_vllm and contract.seams.holds("later graphs"):
            try:
                self.collective_rpc("few_graphs_first", args=(os.environ[FEW_GRAPHS] == ANY_GRAPHS,))
            except Exception as error:  # noqa: BLE001 - what is only sooner keeps nobody from being served
                contract.seams.give_up("later graphs", repr(error))
        return super().compile_or_warm_up_model(*arguments, **words)


@contextmanager
def _ending(executor: Any) -> Iterator[None]:  # noqa: ANN401 - vLLM's own
    """End an executor's ranks where a phase of the start fails.

    vLLM leaves that to the end of its process, which waits for them without limit, and one that is told to end in a bad
    moment does not hear it.
    """
    try:
        yield
    except BaseException:
        executor.shutdown()
        raise


class ObservedMultiprocExecutor(Timed, MultiprocExecutor):  # type: ignore[misc, valid-type]
    """vLLM's executor for several workers, defined here so that the engine process imports this module."""

    def _init_executor(self) -> None:
        _stand_alone()  # its own processes end with this one: each has a pipe that closes then
        _mark("weights")
        super()._init_executor()

    def determine_available_memory(self) -> Any:  # noqa: ANN401 - vLLM's own
        """As for one GPU, and no rank outlives its failure."""
        with _ending(self):
            return super().determine_available_memory()

    def initialize_from_config(self, *arguments: Any, **words: Any) -> Any:  # noqa: ANN401 - vLLM's own
        """As for one GPU, and no rank outlives its failure."""
        with _ending(self):
            return super().initialize_from_config(*arguments, **words)

    def compile_or_warm_up_model(self, *arguments: Any, **words: Any) -> Any:  # noqa: ANN401 - vLLM's own
        """As for one GPU, and no rank outlives its failure."""
        with _ending(self):
            return super().compile_or_warm_up_model(*arguments, **words)

    if contract.seams.holds("end of ranks"):

        def _ensure_worker_termination(self, processes: Sequence[BaseProcess]) -> None:
            # They have been told: their pipes from this process are closed.
            end_ranks(processes, 0.0 if contract.lost_a_rank(self) else RANKS_END_S)


OBSERVED = {UniProcExecutor: ObservedUniProcExecutor, MultiprocExecutor: ObservedMultiprocExecutor}


def observed(executor: type) -> type:
    """What takes the place of vLLM's executor."""
    return OBSERVED.get(executor, executor)
