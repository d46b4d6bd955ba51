#!/usr/bin/env python3
"""Measures how soon a long prefix that the GPU had to drop comes back from host memory, against its prefill.

    python3 tests/gpu/offload.py FOLDER [--gib 16] [--tokens 4650] [--rounds 5]

Each round: a prefix is prefilled (cold), asked again at once (it is in the GPU's cache), then other prefixes fill the
GPU's cache until it is dropped, then it is asked again. With host memory it should take less than half of its prefill.
The GPU's cache is kept small (`--fraction`), so that few prefixes fill it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runtime.engines import EngineOptions
from runtime.engines.vllm.engine import VllmEngine

VOCABULARY = 40_000


def prefix(seed: int, tokens: int) -> list[int]:
    """Return token ids that no other seed begins with."""
    draw = random.Random(seed)
    return [draw.randrange(100, VOCABULARY) for _ in range(tokens)]


async def measure(
    folder: Path, gib: float, tokens: int, rounds: int, fraction: float, fillers: int
) -> dict[str, float]:
    """Return the median milliseconds of a cold prefix, a kept one, and one that was dropped."""
    options = EngineOptions(max_model_len=tokens + 64, max_num_seqs=16, kv_offload_gib=gib, gpu_fraction=fraction)
    engine = VllmEngine(folder, options)
    times: dict[str, list[float]] = {"cold": [], "kept": [], "dropped": []}
    found: list[int] = []

    async def timed(name: str, seed: int) -> None:
        begun = time.perf_counter()
        cached = await engine.warm(prefix(seed, tokens))
        times[name].append(1000 * (time.perf_counter() - begun))
        if name == "dropped":
            found.append(cached)

    try:
        await engine.start()
        for number in range(rounds):
            await timed("cold", number)
            await timed("kept", number)
            for other in range(fillers):
                await engine.warm(prefix(10_000 + number * fillers + other, tokens))
            await timed("dropped", number)
    finally:
        await engine.shutdown()
    return {name: median(values) for name, values in times.items()} | {"tokens found again": float(median(found))}


def main() -> None:
    """Measure with host memory and without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=float, default=16)
    parser.add_argument("--tokens", type=int, default=4650)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=0.3)
    parser.add_argument("--fillers", type=int, default=24, help="prefixes between; together more than the GPU's cache")
    options = parser.parse_args()
    print("| KV_OFFLOAD_GIB | prefill ms | kept ms | dropped ms | dropped over prefill | tokens found again |")
    print("|---|---|---|---|---|---|")
    for gib in (0.0, options.gib):
        found = asyncio.run(
            measure(options.folder, gib, options.tokens, options.rounds, options.fraction, options.fillers)
        )
        ratio = found["dropped"] / found["cold"]
        print(
            f"| {gib:g} | {found['cold']:.1f} | {found['kept']:.1f} | {found['dropped']:.1f} | {ratio:.2f} "
            f"| {found['tokens found again']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
