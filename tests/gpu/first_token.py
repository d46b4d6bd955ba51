#!/usr/bin/env python3
"""Measures what the runtime adds to one stream's first token: the engine alone and our runtime, taking turns.

    python3 tests/gpu/first_token.py ARTIFACT [--rounds 15] [--pause 0.5]

A first token's time drifts by more than the runtime adds: measured one after the other, contenders tell when they were
measured. Here both are up on one GPU, each with two fifths of its memory, and speak in turns of a few replies, so that
what drifts drifts for both. The engine alone is vLLM without what the runtime adds to its process
(`runtime/engines/vllm/core.py`). Work and CPUs are as in `streams.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import engine_alone
from tests.benchmarks.load import Target, run_load, split_cpus
from tests.benchmarks.work import Sample
from tests.client.statistics import percentile
from tests.harness.server import STEADY, Server

WORDS, REPLY, BLOCK = 200, 100, 3
SHARE = 0.4  # of the GPU's memory, for each of the two
PERSONA = 70_000_000
ENVIRONMENT = {
    **STEADY,
    "DEPLOY_MODE": "chat",
    "CHAT_GPU_FRAC": str(SHARE),
    "CHAT_MAX_OUT": str(REPLY),
    "WS_MAX_MESSAGES_PER_WINDOW": "0",
}


def line(name: str, times: list[float]) -> str:
    """Word the quartiles of times, since a median hides scatter."""
    ordered = sorted(time * 1000 for time in times)
    cells = "  ".join(f"p{p} {percentile(ordered, p):6.2f} ms" for p in (5, 25, 50, 75, 95))
    return f"{name:32} {cells}  ({len(ordered)} turns)"


async def measure(arguments: argparse.Namespace, server: Server, cpus: tuple[int, ...]) -> None:
    """Run all rounds: a block of turns of one contender, then of the other, then the other way round."""
    folder, pause = arguments.artifact, arguments.pause
    limits = json.loads((folder / "build_metadata.json").read_text())["chat"]["limits"]
    server.wait_ready(400)  # an engine that is starting counts what others take meanwhile as its own
    llm = engine_alone.start(
        folder,
        max_model_len=limits["max_model_len"],
        max_num_seqs=limits["max_batch_size"],
        gpu_fraction=SHARE,
    )
    target = Target("yap", server.url, server.api_key, words=WORDS, max_tokens=REPLY)
    found: dict[str, list[Sample]] = {"alone": [], "runtime": []}

    async def block(name: str, seed: int) -> list[Sample]:
        if name == "runtime":
            return await asyncio.to_thread(run_load, target, 1, BLOCK, 1, seed, PERSONA, 0.0, cpus, pause)
        prompts = engine_alone.prompts(folder, 1, BLOCK, WORDS, seed, PERSONA)
        return await engine_alone.measure(llm, prompts, 1, BLOCK, REPLY, pause=pause)

    try:
        for number in range(-2, arguments.rounds):  # the first two fill caches and compile what is left
            for name in sorted(found, reverse=bool(number % 2)):
                samples = await block(name, PERSONA + 100_000 + number * BLOCK)
                if number >= 0:
                    found[name] += samples
    finally:
        llm.shutdown()
    alone, ours = ([sample.ttft for sample in found[name]] for name in ("alone", "runtime"))
    inside = [sample.server_ttft for sample in found["runtime"]]
    print(line("engine alone: TTFT", alone))
    print(line("runtime: TTFT", ours))
    print(line("runtime, by the server's clock", inside))
    for name, times in (("the runtime", ours), ("the server, by its own clock,", inside)):
        gaps = [
            median(times[start : start + BLOCK]) - median(alone[start : start + BLOCK])
            for start in range(0, len(alone), BLOCK)
        ]
        print(
            f"{name} adds {(median(times) - median(alone)) * 1000:+.2f} ms to the median; block against block "
            f"p25 {percentile(sorted(gaps), 25) * 1000:+.2f}, p50 {median(gaps) * 1000:+.2f}, "
            f"p75 {percentile(sorted(gaps), 75) * 1000:+.2f} ms ({len(gaps)} blocks of {BLOCK})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=15, help=f"blocks of {BLOCK} turns for each contender")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds of silence between turns")
    parser.add_argument("--listeners-cpus", type=int, metavar="N", help="CPUs for the load alone; default: a quarter")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started here is ended here
    serving, listening = split_cpus(os.sched_getaffinity(0), arguments.listeners_cpus)
    os.sched_setaffinity(0, serving)
    with Server(arguments.artifact, **ENVIRONMENT) as server:
        asyncio.run(measure(arguments, server, tuple(sorted(listening))))
        print(f"the server exited {server.stop()}")


if __name__ == "__main__":
    main()
