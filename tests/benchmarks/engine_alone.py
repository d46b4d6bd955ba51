"""vLLM's AsyncLLM by itself, in this process: the baseline for any server around it."""

from __future__ import annotations

import asyncio
import atexit
import os
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.work import SAMPLING, Sample, turns, work


def prompts(
    folder: Path, streams: int, rounds: int, words: int, first_seed: int, first_persona: int | None = None
) -> list[list[int]]:
    """Render the prompts that the listeners send (`run_load`), by the same renderer, stream after stream."""
    from runtime.text.prompt import Budgets, PromptRenderer

    renderer = PromptRenderer(folder, Budgets())
    items = (
        work(seed, words, persona) for own in turns(streams, rounds, first_seed, first_persona) for seed, persona in own
    )
    return [
        renderer.render(persona=item.persona, runtime_text=None, history=[], utterance=item.utterance).token_ids
        for item in items
    ]


async def measure(
    llm: Any,
    token_ids: list[list[int]],
    streams: int,
    rounds: int,
    max_tokens: int,
    spread: float = 0.0,
    pause: float = 0.0,
) -> list[Sample]:
    """Let `streams` requests run at once, `rounds` after one another; delta outputs, as our runtime asks for them.

    They begin as the listeners do (`run_load`).
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = SamplingParams(**SAMPLING, max_tokens=max_tokens, output_kind=RequestOutputKind.DELTA)

    async def one(stream: int) -> list[Sample]:
        samples = []
        await asyncio.sleep(spread * stream / streams)
        for turn in range(rounds):
            number = stream * rounds + turn
            started = time.perf_counter()
            first, tokens = 0.0, 0
            request = {"prompt_token_ids": token_ids[number]}
            async for output in llm.generate(request, sampling, f"alone-{streams}-{number}-{started}"):
                tokens += len(output.outputs[0].token_ids)
                if not first and tokens:
                    first = time.perf_counter()
            samples.append(Sample(started, first, time.perf_counter(), tokens, stream=stream))
            if pause:
                await asyncio.sleep(pause)
        return samples

    groups = await asyncio.gather(*(one(stream) for stream in range(streams)))
    return [sample for group in groups for sample in group]


def start(folder: Path, *, as_vllm_ships: bool = False, **options: Any) -> Any:
    """Start an AsyncLLM on an artifact's model, with the engine arguments that the runtime would choose.

    With `as_vllm_ships` without what the runtime adds to vLLM's workers, and without what the artifact's build tuned.
    """
    from runtime import artifact
    from runtime.engines import EngineOptions
    from runtime.engines.tuned import with_choices
    from runtime.engines.vllm import contract
    from runtime.engines.vllm.arguments import engine_arguments, prepare_environment
    from runtime.engines.vllm.caches import CacheCopy

    chosen = EngineOptions(**options)
    tuned = artifact.read(folder).chat if (folder / artifact.METADATA_NAME).exists() else None
    if tuned is not None and tuned.engine_options is not None and not as_vllm_ships:
        chosen = with_choices(chosen, tuned.engine_options.choices)
    prepare_environment(chosen)
    outside = set(os.environ)
    if (folder / "compile_cache").is_dir() and "VLLM_CACHE_ROOT" not in os.environ:
        atexit.register(CacheCopy(folder / "compile_cache").remove)
    arguments = engine_arguments(folder, chosen)
    if as_vllm_ships:
        arguments.worker_extension_cls = ""
    try:
        return contract.llm_class().from_engine_args(arguments)
    finally:
        # Else a server that is started next would take this copy for its own artifact's, and compile all anew.
        for name in set(os.environ) - outside:
            del os.environ[name]
