"""vLLM's own table of graphs, by which a batch's is found and captured, without a GPU: to capture is to note."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.engines import EngineOptions
from runtime.engines.vllm import contract
from runtime.engines.vllm.arguments import prepare_environment

# As vLLM chooses them by itself, up to the most sequences.
OWN_SIZES = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]


class OutOfMemory(Exception):
    """What a GPU may say to a graph."""


@contextmanager
def streams_of_no_gpu() -> Iterator[None]:
    """Let vLLM capture each time on a stream of its own, as it does; and on one that it is given."""
    prepare_environment(EngineOptions())  # before vLLM is imported
    from vllm.distributed import parallel_state
    from vllm.v1.worker.gpu import cudagraph_utils

    @contextmanager
    def capture(device: object) -> Iterator[Any]:
        yield parallel_state.GraphCaptureContext(object())

    group = SimpleNamespace(graph_capture=nullcontext)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cudagraph_utils, "graph_capture", capture)
        patch.setattr(parallel_state, "get_tp_group", lambda: group)
        yield
        assert cudagraph_utils.graph_capture is capture


def manager(mode: str, sizes: list[int], sequences: int = 256, *, own: bool = True, **about_it: object) -> Any:
    """vLLM's table of graphs, with a `capture` that has no GPU; with the project's graphs for replies, or vLLM's."""
    from vllm.config.compilation import CUDAGraphMode
    from vllm.v1.worker.gpu import cudagraph_utils

    class Noted(cudagraph_utils.CudaGraphManager):  # type: ignore[misc]
        _graphs_captured: bool
        if own:
            _init_candidates = contract.with_decoding(cudagraph_utils.CudaGraphManager._init_candidates)

        def capture(self, *about: Any) -> None:
            with cudagraph_utils.graph_capture(device=None) as context:
                for found in self._capture_descs.values():
                    for one in found:
                        if one.num_tokens in self.refused:
                            raise OutOfMemory
                        assert one not in self.graphs, "captured twice"
                        assert not gc.isenabled() or not self._graphs_captured
                        for create in filter(callable, about):
                            create(one)
                        self.graphs[one] = about
                        self.streams.append(context.stream)
            self._graphs_captured = True

    made: Any = object.__new__(Noted)
    compilation = SimpleNamespace(cudagraph_capture_sizes=sizes, max_cudagraph_capture_size=max(sizes))
    cache = SimpleNamespace(use_kda_recoverssm=False)
    made.vllm_config = SimpleNamespace(
        compilation_config=compilation, speculative_config=None, cache_config=cache, num_speculative_tokens=0
    )
    made.compilation_config, made.cudagraph_mode = compilation, CUDAGraphMode[mode]
    made.max_num_reqs, made.decode_query_len, made.varlen_decode = sequences, 1, False
    made.ubatch_runner, made.lora_capture_cases, made.use_breakable_cg = None, [0], False
    made._lora_dispatch_map, made._max_lora_case = {}, 0
    made.graphs, made._graphs_captured, made.refused, made.streams = {}, False, set(), []
    made._candidates, made._capture_descs = {}, {}
    vars(made).update(about_it)
    made._init_candidates()
    return made


class Worker:
    """As the worker has them; its own module changes vLLM where it is imported, and no engine is forked then."""

    vllm_config: Any
    model_runner: Any
    later: contract.LaterGraphs | None = None

    def few_graphs_first(self, any_mode: bool = True) -> bool:
        self.later = contract.later_graphs(self, any_mode=any_mode)
        return self.later is not None

    def next_graph(self) -> int:
        return self.later.capture_next() if self.later else -1


def worker(table: Any, gpus: int = 1, **beside: object) -> Worker:
    """A worker whose runner has that table."""
    made = Worker()
    parallel = SimpleNamespace(world_size=gpus, data_parallel_size=1)
    made.vllm_config = SimpleNamespace(parallel_config=parallel, kv_transfer_config=beside.pop("kv_transfer", None))
    made.model_runner = SimpleNamespace(cudagraph_manager=table, **beside)
    return made


def runs_in(table: Any, tokens: int, requests: int, *, decoding: bool) -> Any:
    """The graph in which vLLM runs a batch."""
    return table.dispatch(requests, tokens, 1 if decoding else None, 0)
