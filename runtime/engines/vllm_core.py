"""What this project adds to vLLM's engine process: one question about its scheduler.

vLLM publishes scheduler figures only together with a step's outputs, so an idle engine says nothing and the last
figures may be stale; publishing them also costs time for every token. A utility call is answered by the engine's own
loop, after every abort that was sent before it. `EngineCore` looks the called method up by name on itself, therefore it
is added here.

The module must be imported inside the engine process, whether that was forked or spawned. The executor class is the one
object that vLLM hands over to that process by reference, so subclasses defined here bring the module along.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

METHOD = "scheduler_load"


def scheduler_load(core: Any) -> tuple[int, int, float]:  # noqa: ANN401 - EngineCore is untyped to us
    """Requests that run, requests that wait, and the used part of the KV cache (0 to 1)."""
    running, waiting = core.scheduler.get_request_counts()
    return running, waiting, core.scheduler.kv_cache_manager.usage


setattr(EngineCore, METHOD, scheduler_load)


class ObservedUniProcExecutor(UniProcExecutor):  # type: ignore[misc]
    """vLLM's executor for one GPU, defined here so that the engine process imports this module."""


class ObservedMultiprocExecutor(MultiprocExecutor):  # type: ignore[misc]
    """vLLM's executor for several workers, defined here so that the engine process imports this module."""


OBSERVED = {UniProcExecutor: ObservedUniProcExecutor, MultiprocExecutor: ObservedMultiprocExecutor}
