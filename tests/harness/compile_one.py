"""Compile one small graph by vLLM's own compiler manager, or find it compiled: `compile_one.py CACHE`.

Prints how many graphs were known before, and what the graph makes of its inputs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(cache: Path) -> None:
    # Graphs in files of their own, as vLLM keeps them beside the torch versions that cannot put all into one.
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_USE_MEGA_AOT_ARTIFACT": "0"}
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor_cache")
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx
    from vllm.compilation.backends import CompilerManager
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
    from vllm.config.utils import Range

    def graph(x, y):  # annotations would become part of the graph, and could not be saved
        return (torch.relu(x @ y) + 1,)

    config = CompilationConfig(backend="inductor")
    inputs = [torch.arange(32.0).reshape(4, 8).clone(), torch.eye(8)]
    home = cache / "torch_compile_cache" / "KEY" / "rank_0_0" / "backbone"
    home.mkdir(parents=True, exist_ok=True)
    with set_current_vllm_config(VllmConfig(compilation_config=config)):
        manager = CompilerManager(config)
        manager.initialize_cache(str(home))
        known = len(manager.cache)
        traced = make_fx(graph, tracing_mode="fake")(*inputs)
        compiled = manager.compile(traced, inputs, {}, config, Range(4, 4), graph_index=0, num_graphs=1)
        manager.save_to_file()
        answer = compiled(*inputs)
    print(known, float((answer[0] if isinstance(answer, (tuple, list)) else answer).sum()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
