"""One turn of a model through the runtime's own vLLM engine: what it said, or why it could not be loaded.

python -m tests.harness.models.serving FOLDER
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
from pathlib import Path

from runtime import engines
from runtime.engines import EngineOptions, Sampling
from runtime.engines.vllm import exercise

TOKENS = 4
# A machine that does much else at once is no reason to call a model one that cannot be loaded.
PATIENCE_S = 500.0


async def answer(folder: Path) -> int:
    """Load the model in a folder, let it answer a short prompt, and return how many tokens it said."""
    options = EngineOptions(max_model_len=128, max_num_seqs=1, cpu_kv_cache_gib=0.0625)
    engine = engines.for_model("vllm", folder, options)
    await engine.start()
    said = 0
    try:

        def hear(delta: engines.Delta) -> None:
            nonlocal said
            said += delta.tokens

        await engine.generate([5, 6, 7], Sampling(temperature=0, max_tokens=TOKENS, ignore_eos=True), hear)
    finally:
        await engine.shutdown()
    return said


def main() -> None:
    """Serve the folder that the command line names."""
    from vllm.model_executor.models import registry

    exercise.TIMEOUT_S = PATIENCE_S
    # vLLM's processes would import it anew, one after the other, which takes most of the time.
    multiprocessing.get_context = lambda method=None: multiprocessing.context.ForkContext()
    registry._run_in_subprocess = lambda look: look()
    # Threads that wait for one another wait long where others use the cores too; so small a model needs one.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", str(min(os.sched_getaffinity(0))))
    print(f"answered {asyncio.run(answer(Path(sys.argv[1])))} tokens")


if __name__ == "__main__":
    main()
