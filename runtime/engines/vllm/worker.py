"""What this project changes in vLLM's workers, the processes that run the model: where a compile cache is found.

vLLM counts the model's folder into the key of its compile cache, so a cache that was filled where an artifact was built
would never be found where it is served. vLLM imports the module in every worker, because `Worker` is named as its
`worker_extension_cls`.
"""

from __future__ import annotations

import copy
from typing import Any

from vllm.config import ModelConfig

# Stands in the key for the model's folder, wherever that is.
PLACEHOLDER_MODEL = "artifact"


class Worker:
    """Adds one question to vLLM's own worker."""

    def model_key(self) -> str:
        """What this worker counts of the model into the key of its compile cache."""
        return str(self.vllm_config.model_config.compute_hash())  # type: ignore[attr-defined]


_compute_hash = ModelConfig.compute_hash


def compute_hash(config: Any) -> str:  # noqa: ANN401 - vLLM is untyped to us
    """`ModelConfig.compute_hash`, as if the model lay at one place everywhere.

    What a compiled graph depends on is all in the configuration's other fields: shapes, types, quantization.
    """
    moved = copy.copy(config)
    moved.model = PLACEHOLDER_MODEL
    moved.model_weights = PLACEHOLDER_MODEL if config.model_weights else config.model_weights
    for name in ("hf_config", "hf_text_config"):
        inner = copy.copy(getattr(config, name))
        inner.name_or_path = PLACEHOLDER_MODEL
        setattr(moved, name, inner)
    return str(_compute_hash(moved))


ModelConfig.compute_hash = compute_hash
