"""In vLLM's workers: in which graph a batch runs, and which are captured before readiness, which after it.

A batch runs in the smallest graph that takes it, so a few graphs serve every batch, somewhat padded. vLLM's newer model
runner keeps with each number of tokens the graphs that it may run in. That table is laid out anew, by vLLM's own code,
for those sizes alone that are captured; so no step can ask for a graph that is not there.

Where prompts run in graphs too (`FULL`), vLLM has one kind of graph for all. In 0.31 it is captured so that one prompt
may fill the whole batch, and its attention is a prompt's. Replies alone, which is nearly every step, run in graphs of
their own here, as they do where prompts run in pieces: vLLM lays out both tables, and they are joined.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

from runtime.engines.vllm.contract.table import BAR, CAPTURE, MODEL_GRAPHS, seams

# What a runner may have beside its model that graphs are captured for, too: then all are captured at once.
BESIDE = ("speculator", "lora_config", "pcp_manager", "adaptive_verification")


def decode_in_graphs_of_its_own() -> None:
    """Have replies run in graphs that are captured for them alone, where prompts run in graphs, too."""
    try:
        from vllm.v1.worker.gpu import cudagraph_utils

        kind = getattr(cudagraph_utils, MODEL_GRAPHS)
        kind._init_candidates = with_decoding(kind._init_candidates)
    except (ImportError, OSError, AttributeError) as error:
        seams.give_up("decoding graphs", repr(error))


def with_decoding(lay_out: Callable[[Any], None]) -> Callable[[Any], None]:
    """vLLM's own laying out of a table of graphs, with a second kind in it: for batches of replies, before the others.

    Where every reply has one token a step, in one batch at a time: not with a draft model, nor in halves.
    """

    @wraps(lay_out)
    def laid_out(manager: Any) -> None:  # noqa: ANN401 - vLLM is untyped to us
        lay_out(manager)
        mode = manager.cudagraph_mode
        # Older releases have neither of the last two.
        others = getattr(manager, "varlen_decode", False) or getattr(manager, "ubatch_runner", None) is not None
        if mode.name != "FULL" or manager.decode_query_len != 1 or others or not seams.holds("decoding graphs"):
            return
        candidates, captured = manager._candidates, manager._capture_descs
        manager._candidates, manager._capture_descs = {}, {}
        manager.cudagraph_mode = type(mode).FULL_DECODE_ONLY
        try:
            lay_out(manager)
            both = [*captured.get(mode, ()), *manager._capture_descs.get(mode, ())]
            candidates = {size: [*manager._candidates.get(size, ()), *found] for size, found in candidates.items()}
            # The largest first, as vLLM has them: what it needs, the others use after it. Of one size a prompt's before
            # a reply's: by the second one vLLM tells what each takes of the memory.
            captured = {mode: sorted(both, key=lambda one: -one.num_tokens)} if both else {}
        except Exception as error:  # noqa: BLE001 - vLLM's own table serves as well, somewhat slower
            seams.give_up("decoding graphs", repr(error))
        finally:
            manager.cudagraph_mode = mode
            manager._candidates, manager._capture_descs = candidates, captured

    return laid_out


def first_sizes(sizes: Iterable[int]) -> set[int]:
    """Return the batches, in tokens, whose graphs are captured first: powers of two, and the largest.

    >>> sorted(first_sizes([1, 2, 4, 8, 16, 24, 32, 40]))
    [1, 2, 4, 8, 16, 32, 40]
    """
    known = set(sizes)
    return {size for size in known if size & (size - 1) == 0} | {max(known)} if known else set()


def sizes_of(manager: Any) -> tuple[set[int], set[int]]:  # noqa: ANN401 - vLLM is untyped to us
    """Return all sizes of graphs that are to be captured, and those that come first: of each kind of graph.

    A kind is what a graph is captured for: prompts or replies, whole or in pieces.
    """
    kinds: dict[object, set[int]] = {}
    for mode, found in manager._capture_descs.items():
        for one in found:
            kinds.setdefault((mode, one.uniform_token_count), set()).add(one.num_tokens)
    return set().union(*kinds.values()), set().union(*map(first_sizes, kinds.values()))


class LaterGraphs:
    """Graphs of a worker that are captured after readiness; made before any is.

    Args:
        manager: vLLM's `CudaGraphManager`, which from now on knows the first sizes alone.
        config: vLLM's whole configuration.
    """

    def __init__(self, manager: Any, config: Any) -> None:  # noqa: ANN401 - vLLM is untyped to us
        self._manager, self._config = manager, config
        self._sizes, self._captured = sizes_of(manager)
        self._again: Callable[[], None] | None = None
        self._streams: list[Any] = []  # the first capture's, once there is one
        manager.capture = partial(self._first, manager.capture)
        self._offer(self._captured)

    def _first(self, capture: Callable[..., None], *given: object, **named: object) -> None:
        """Capture the first sizes, and keep with what."""
        del self._manager.capture
        self._again = partial(capture, *given, **named)
        with _on_one_stream(self._streams):
            self._again()

    def _offer(self, sizes: set[int]) -> None:
        """Have steps run in graphs of these sizes."""
        compilation = self._manager.compilation_config
        every = compilation.cudagraph_capture_sizes
        self._manager._candidates, self._manager._capture_descs = {}, {}
        compilation.cudagraph_capture_sizes = sorted(sizes)
        try:
            self._manager._init_candidates()
        finally:
            compilation.cudagraph_capture_sizes = every

    def capture_next(self) -> int:
        """Capture the smallest that is left, while no step is under way; return how many are left then.

        Where that fails, steps run in the graphs that were there before.
        """
        left = sorted(self._sizes - self._captured)
        if not left or self._again is None:
            return 0
        self._offer(self._captured | {left[0]})
        known = self._manager._capture_descs
        of_size = {mode: [one for one in found if one.num_tokens == left[0]] for mode, found in known.items()}
        self._manager._capture_descs = {mode: found for mode, found in of_size.items() if found}
        looked = gc.isenabled()
        gc.disable()  # what is collected while a graph is captured can spoil it
        try:
            with _current(self._config), _on_one_stream(self._streams), _without_a_bar():
                self._again()
        except BaseException:
            self._offer(self._captured)
            raise
        finally:
            if looked:
                gc.enable()
        self._captured.add(left[0])
        return len(left) - 1


@contextmanager
def _on_one_stream(kept: list[Any]) -> Iterator[None]:
    """Have vLLM capture on the first capture's stream, which is kept; it takes a new one each time.

    What one graph has let go, another one uses on the same stream alone. And what a kernel keeps for a stream, such as
    Marlin's locks, cannot be made any more for a new one after vLLM has locked its workspace.
    """
    from vllm.distributed import parallel_state
    from vllm.v1.worker.gpu import cudagraph_utils

    own = getattr(cudagraph_utils, CAPTURE)

    @contextmanager
    def capture(device: Any) -> Iterator[Any]:  # noqa: ANN401 - vLLM's own
        if not kept:
            with own(device=device) as context:
                kept.append(context.stream)
                yield context
        else:
            context = parallel_state.GraphCaptureContext(kept[0])
            with parallel_state.get_tp_group().graph_capture(context):
                yield context

    setattr(cudagraph_utils, CAPTURE, capture)
    try:
        yield
    finally:
        setattr(cudagraph_utils, CAPTURE, own)


@contextmanager
def _without_a_bar() -> Iterator[None]:
    """Have vLLM draw no bar of what it captures, as in all ranks but the first: there would be one for each size."""
    from vllm.v1.worker.gpu import cudagraph_utils

    own = getattr(cudagraph_utils, BAR)
    setattr(cudagraph_utils, BAR, lambda: False)
    try:
        yield
    finally:
        setattr(cudagraph_utils, BAR, own)


def _current(config: Any) -> Any:  # noqa: ANN401 - vLLM's own
    from vllm.config import set_current_vllm_config

    return set_current_vllm_config(config)


def finish_steps() -> None:
    """Wait until the GPU has done all that it was given: what a capture is prepared in, a step may be reading from."""
    import torch

    torch.cuda.synchronize()


def later_graphs(worker: Any, *, any_mode: bool) -> LaterGraphs | None:  # noqa: ANN401 - vLLM is untyped to us
    """Leave most graphs of a worker for later; none where it has them already, few, or others beside the model's.

    For one GPU: several capture together, and would have to be silent together. And where nothing moves the KV cache
    meanwhile.

    Args:
        worker: vLLM's own, before it captures.
        any_mode: whatever the graphs are; else where prompts run in them, too, which is what was proven.
    """
    if worker.vllm_config.kv_transfer_config is not None:
        return None
    parallel, runner = worker.vllm_config.parallel_config, worker.model_runner
    manager = getattr(runner, "cudagraph_manager", None)  # vLLM's older model runner has none
    if manager is None or manager.graphs or manager.use_breakable_cg or manager.decode_query_len != 1:
        return None
    if parallel.world_size * parallel.data_parallel_size > 1 or getattr(manager, "ubatch_runner", None) is not None:
        return None
    if any(getattr(runner, name, None) is not None for name in BESIDE):
        return None
    if not any_mode and manager.cudagraph_mode.name != "FULL":
        return None
    sizes, first = sizes_of(manager)
    return LaterGraphs(manager, worker.vllm_config) if sizes != first else None
