"""In vLLM's workers: into how many pieces FlashAttention cuts the histories of replies.

It cuts them up where a batch is too small to fill the GPU, and puts the pieces together in a kernel of its own, in
every layer. In graphs vLLM has one bound of pieces for all batches, so that kernel runs for full batches, too, of which
nothing is cut up: 0.2 ms of a step of 256 replies (`tests/gpu/limits/decoding.py`). Graphs of replies that fill the GPU
are captured without it here.

A graph and what is laid out for its replay must agree on it. So it hangs on the graph alone: on its kind, its size and
what was so before the first one was captured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from runtime.engines.vllm.contract.table import FLASH, MODEL_GRAPHS, seams

# Histories that each of the GPU's processors has to read at least: what one of them is behind at the end, then, is
# little beside what they all did.
ROUNDS = 8
# Tokens that replies are expected to have before them, in the mean: a persona and some turns. A history as long as the
# model takes is then read no longer by one processor than all the others are busy.
USUAL = 512


class Running:
    """The graph that a batch is laid out for: the one that it runs in, or that is being captured."""

    graph: Any = None


def fills(replies: int, heads: int, processors: int, longest: int) -> bool:
    """Tell whether a batch of replies keeps a GPU busy to the end without being cut up.

    Args:
        replies: in the graph.
        heads: of keys and values, which this GPU has; each of a reply's is read by itself.
        processors: of the GPU.
        longest: tokens that a history may have.

    >>> fills(256, 8, 132, 2304), fills(64, 8, 132, 2304), fills(256, 8, 132, 32768)
    (True, False, False)
    """
    histories = replies * heads
    return histories >= ROUNDS * processors and histories * USUAL >= processors * longest


def full_batches_in_one_piece() -> None:
    """Have replies that fill the GPU be attended to without cutting their histories up."""
    try:
        from vllm.utils.platform_utils import num_compute_units
        from vllm.v1.attention.backends import flash_attn
        from vllm.v1.worker.gpu import cudagraph_utils

        running = Running()
        watch(cudagraph_utils.CudaGraphManager, getattr(cudagraph_utils, MODEL_GRAPHS), running)
        builder = getattr(flash_attn, FLASH)
        builder.build = in_one_piece(builder.build, running, num_compute_units)
    except (ImportError, OSError, AttributeError) as error:
        seams.give_up("attention in one piece", repr(error))


def watch(base: Any, kind: Any, running: Running) -> None:  # noqa: ANN401 - vLLM's own
    """Note the graph that each batch of the model is laid out for, where one runs and where one is captured.

    Args:
        base: vLLM's tables of graphs, by which all are captured.
        kind: the model's own among them.
        running: where to note it.
    """
    dispatch, capture = kind.dispatch, base.capture

    @wraps(dispatch)
    def dispatched(self: object, *given: object, **named: object) -> object:
        running.graph = dispatch(self, *given, **named)
        return running.graph

    @wraps(capture)
    def captured(self: object, create: Callable[..., object], *given: object, **named: object) -> object:
        @wraps(create)
        def created(graph: object, *about: object, **more: object) -> object:
            # Where vLLM only measures what graphs take, by the largest of them, it sees what the others will need.
            measured = getattr(self, "_capture_mem_samples", None) is not None
            running.graph = graph if isinstance(self, kind) and not measured else None
            return create(graph, *about, **more)

        return capture(self, created, *given, **named)

    kind.dispatch = dispatched
    base.capture = captured


def in_one_piece(
    build: Callable[..., Any], running: Running, processors_of: Callable[[int], int]
) -> Callable[..., Any]:
    """vLLM's own laying out of a batch for FlashAttention, but in one piece where the batch's graph fills the GPU.

    Not where several ranks agree on a graph, nor with a draft model, which has graphs of its own.
    """

    @wraps(build)
    def built(self: Any, common_prefix_len: int, common_attn_metadata: Any, *given: object, **named: object) -> Any:  # noqa: ANN401
        most, graph, config = self.max_num_splits, running.graph, self.vllm_config
        whole = (
            most > 1  # else there is no bound, or nothing to put together
            and graph is not None
            and graph.uniform_token_count == 1
            and graph.num_reqs == common_attn_metadata.num_reqs
            and config.parallel_config.data_parallel_size == 1
            and config.parallel_config.decode_context_parallel_size == 1
            and config.speculative_config is None
            and fills(
                graph.num_reqs,
                self.num_heads_kv,
                processors_of(self.device.index or 0),
                config.model_config.max_model_len,
            )
        )
        self.max_num_splits = 1 if whole else most
        try:
            return build(self, common_prefix_len, common_attn_metadata, *given, **named)
        finally:
            self.max_num_splits = most

    return built
