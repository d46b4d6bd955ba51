"""What this project adds to vLLM's workers, the processes that run the model.

vLLM imports the module in each of them, because `Worker` is named as its `worker_extension_cls`. Two things change:

- small top-k batches are filtered by `vllm_sampling`;
- the key of the compile cache does not hold the model's folder. vLLM counts it in, so a cache that was filled where an
  artifact was built would never be found where it is served.
"""

from __future__ import annotations

import copy
from typing import Any

from vllm.config import ModelConfig

from runtime.engines import vllm_sampling

# Stands in the key for the model's folder, wherever that is.
ANYWHERE = "artifact"


class Worker:
    """What is added to vLLM's own worker."""

    def sampling_filter(self) -> str:
        """The module whose filter is in force in this process."""
        from vllm.v1.sample.ops import topk_topp_sampler

        return str(topk_topp_sampler.apply_top_k_top_p.__module__)


_compute_hash = ModelConfig.compute_hash


def compute_hash(config: Any) -> str:  # noqa: ANN401 - vLLM is untyped to us
    """`ModelConfig.compute_hash`, as if the model lay at one place everywhere.

    What a compiled graph depends on is all in the configuration's other fields: shapes, types, quantization.
    """
    moved = copy.copy(config)
    moved.model = ANYWHERE
    moved.model_weights = ANYWHERE if config.model_weights else config.model_weights
    for name in ("hf_config", "hf_text_config"):
        inner = copy.copy(getattr(config, name))
        inner.name_or_path = ANYWHERE
        setattr(moved, name, inner)
    return str(_compute_hash(moved))


ModelConfig.compute_hash = compute_hash
vllm_sampling.install()
