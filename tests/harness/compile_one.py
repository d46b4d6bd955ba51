"""Compile one small model as vLLM does on a GPU, or find it compiled, in the cache that VLLM_CACHE_ROOT names.

Prints how many graphs and how many whole models were found compiled, and what the model makes of its inputs. What is
kept names the source that was traced, so that this runs as a module: `python -m tests.harness.compile_one`.
"""

from __future__ import annotations

import torch
from vllm.compilation.counter import compilation_counter
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CompilationConfig, CompilationMode, VllmConfig, set_current_vllm_config

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


def main() -> None:
    declared = declare_missing()
    config = VllmConfig(compilation_config=CompilationConfig(backend="inductor"))
    compilation = config.compilation_config
    # On a CPU vLLM has another mode.
    compilation.mode = CompilationMode.VLLM_COMPILE
    compilation.splitting_ops, compilation.compile_sizes, compilation.custom_ops = [], [], ["none"]
    for name, value in vars(compilation.pass_config).items():
        if value is True and name.startswith(("fuse", "enable")):
            setattr(compilation.pass_config, name, False)
    with set_current_vllm_config(config):
        model = OneLayer(vllm_config=config)
        answer = model(torch.arange(32.0).reshape(4, 8))
    del declared
    print(
        compilation_counter.num_compiled_artifacts_loaded,
        compilation_counter.num_aot_artifacts_loaded,
        float(answer.sum()),
    )


if __name__ == "__main__":
    main()
