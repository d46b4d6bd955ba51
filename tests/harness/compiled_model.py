"""A model of one layer, which vLLM compiles as it does a chat model: traced, split, compiled, kept for the next start.

In a module of its own, because what is kept names the source that was traced.
"""

from __future__ import annotations

import torch
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig

# Operations of a GPU's that vLLM's passes look for, and that its build for a CPU lacks.
FOR_GPUS = (
    "fused_add_rms_norm",
    "fused_add_rms_norm_static_fp8_quant",
    "fused_qk_norm_rope",
    "rms_norm",
    "rms_norm_dynamic_per_token_quant",
    "rms_norm_static_fp8_quant",
    "rotary_embedding",
    "silu_and_mul",
    "silu_and_mul_nvfp4_quant",
    "silu_and_mul_quant",
)


@support_torch_compile(dynamic_arg_dims={"x": 0})
class OneLayer(torch.nn.Module):
    """A product, and what is done with each of its elements."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of eight numbers."""
        return torch.relu(x @ self.weight) + 1


def declare_missing() -> torch.library.Library:
    """Declare the operations that this build lacks, for as long as what is returned is kept."""
    library = torch.library.Library("_C", "FRAGMENT")
    for name in FOR_GPUS:
        if not hasattr(torch.ops._C, name):
            library.define(f"{name}(Tensor x) -> Tensor")
    return library
