"""In vLLM's workers: what a model needs of a GPU's memory, and the size of its KV cache."""

from __future__ import annotations

from typing import Any

from runtime.engines.vllm.contract.table import seams


def memory_factors(worker: Any) -> dict[str, object]:  # noqa: ANN401 - vLLM is untyped to us
    """All that a model's need of a GPU's memory depends on, beside the GPU itself."""
    import vllm

    config = worker.vllm_config
    scheduler, compilation = config.scheduler_config, config.compilation_config
    # What graphs are, and what they need, is not vLLM's own choice, nor in its hash.
    twice = compilation.cudagraph_mode.name == "FULL" and seams.holds("decoding graphs")
    whole = seams.holds("attention in one piece")
    return (
        {
            "vllm": vllm.__version__,
            "config": config.compute_hash(),
            "sequences": scheduler.max_num_seqs,
            "batched_tokens": scheduler.max_num_batched_tokens,
            "model_len": config.model_config.max_model_len,
            "graphs": (str(compilation.cudagraph_mode), compilation.cudagraph_capture_sizes),
        }
        | ({"decoding": "graphs of its own"} if twice else {})
        | ({"attention": "in one piece"} if whole else {})
    )


def memory_of(worker: Any) -> tuple[int, int] | None:  # noqa: ANN401 - vLLM is untyped to us
    """Bytes that are free on a worker's GPU, and bytes that it may use; none where its KV cache has a size already."""
    import torch

    if worker.vllm_config.cache_config.kv_cache_memory_bytes is not None:
        return None
    return int(torch.cuda.mem_get_info()[0]), int(worker.requested_memory)


def give_cache(worker: Any, size: int) -> None:  # noqa: ANN401 - vLLM is untyped to us
    """Have a worker lay out a KV cache of so many bytes, without measuring what is left for it."""
    worker.vllm_config.cache_config.kv_cache_memory_bytes = size
