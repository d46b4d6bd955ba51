"""In vLLM's workers: what counts into the key of a compile cache, and what does not."""

from __future__ import annotations

import copy
from typing import Any

from runtime.engines.vllm.contract.table import PLACES_IN_KEY


def model_key(worker: Any) -> str:  # noqa: ANN401 - vLLM is untyped to us
    """What a worker counts of the model into the key of its compile cache."""
    return str(worker.vllm_config.model_config.compute_hash())


def key_model_as_at(place: str) -> None:
    """Let a model count into the key of a compile cache as if it lay at one place everywhere.

    What a compiled graph depends on is all in the configuration's other fields: shapes, types, quantization.
    """
    from vllm.config import ModelConfig

    own = ModelConfig.compute_hash

    def compute_hash(config: Any) -> str:  # noqa: ANN401 - vLLM is untyped to us
        moved = copy.copy(config)
        moved.model = place
        moved.model_weights = place if config.model_weights else config.model_weights
        for name in ("hf_config", "hf_text_config"):
            inner = copy.copy(getattr(config, name))
            inner.name_or_path = place
            setattr(moved, name, inner)
        return str(own(moved))

    ModelConfig.compute_hash = compute_hash


def key_size_as_measured() -> None:
    """Let the KV cache's size in bytes, where one was given, not count into the key of a compile cache.

    In vLLM 0.25 it does, no longer in 0.30. Where the compile cache was filled the size was measured, so that a start
    that takes it from a plan would compile anew.
    """
    from vllm.config import CacheConfig

    own = CacheConfig.compute_hash

    def compute_hash(config: Any) -> str:  # noqa: ANN401 - vLLM is untyped to us
        measured = copy.copy(config)
        measured.kv_cache_memory_bytes = None
        return str(own(measured))

    CacheConfig.compute_hash = compute_hash


def key_no_places() -> None:
    """Let folders in which vLLM compiles nothing not count into the key of a compile cache.

    In vLLM 0.25 two do, no longer in 0.31. They lie in the home of whoever runs it: a cache that was filled by one user
    would not be found by another.
    """
    from vllm import envs

    own = envs.compile_factors

    def compile_factors() -> dict[str, object]:
        return {name: value for name, value in own().items() if name not in PLACES_IN_KEY}

    envs.compile_factors = compile_factors
