"""Compile one small model as vLLM does on a GPU, or find it compiled: `compile_one.py CACHE`.

Prints how many graphs and how many whole models were found compiled, and what the model makes of its inputs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(cache: Path) -> None:
    # Graphs in files of their own, as vLLM keeps them beside the torch versions that cannot put all into one.
    os.environ |= {
        "VLLM_CACHE_ROOT": str(cache),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_USE_AOT_COMPILE": "1",
        "VLLM_USE_MEGA_AOT_ARTIFACT": "0",
    }
    import torch
    from vllm.compilation.counter import compilation_counter
    from vllm.config import CompilationConfig, CompilationMode, VllmConfig, set_current_vllm_config

    from tests.harness.compiled_model import OneLayer, declare_missing

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
    main(Path(sys.argv[1]))
