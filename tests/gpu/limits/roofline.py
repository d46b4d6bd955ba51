#!/usr/bin/env python3
"""Measures how far decoding at one stream is from what the memory allows.

    python3 tests/gpu/limits/roofline.py FOLDER [FOLDER …]        artifacts, or any Hugging Face folders

A decode step reads every weight once, but for the embedding table, of which it reads a row. Weight bytes over the copy
bandwidth measured here is the least time between tokens; a copied byte counts twice, because it is read and written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.benchmarks import engine_alone
from tests.benchmarks.work import figures


def copy_bandwidth(size: int = 8 << 30, rounds: int = 10) -> float:
    """Measure a large copy on the GPU, in bytes a second, read and written."""
    import torch

    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(rounds):
        target.copy_(source)
    torch.cuda.synchronize()
    elapsed = (time.perf_counter() - began) / rounds
    del source, target
    torch.cuda.empty_cache()
    return 2 * size / elapsed


def bytes_per_step(folder: Path) -> int:
    """Return the bytes of weights that one decode step reads, from the safetensors headers."""
    config = json.loads((folder / "config.json").read_text())
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name == "__metadata__" or ("embed_tokens" in name and not config.get("tie_word_embeddings")):
                continue
            first, last = entry["data_offsets"]
            total += last - first
    return total


async def itl(folder: Path) -> float:
    """Measure the median time between tokens of one stream, in seconds."""
    options = {"max_model_len": 2048, "max_num_seqs": 8}
    described = folder / "build_metadata.json"
    if described.exists():  # an artifact, whose compile cache is for its own limits
        limits = json.loads(described.read_text())["chat"]["limits"]
        options = {"max_model_len": limits["max_model_len"], "max_num_seqs": limits["max_batch_size"]}
    llm = engine_alone.start(folder, **options)
    try:
        prompts = engine_alone.prompts(folder, 1, 12, 100, 60_000_000)
        await engine_alone.measure(llm, prompts[:2], 1, 2, 150)
        return figures(1, await engine_alone.measure(llm, prompts[2:], 1, 10, 150)).itl_p50
    finally:
        llm.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--bandwidth", type=float, help="bytes a second, measured before (else measured now)")
    arguments = parser.parse_args()
    # In a process of its own: an engine forks from this one, which it cannot once CUDA was used here.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        bandwidth = arguments.bandwidth or pool.apply(copy_bandwidth)
    print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s")
    for folder in arguments.folders:
        read = bytes_per_step(folder)
        floor, measured = read / bandwidth, asyncio.run(itl(folder))
        print(
            f"{folder.name:24} {read / 1e9:6.2f} GB a step  floor {floor * 1000:5.2f} ms  "
            f"ITL {measured * 1000:5.2f} ms  {floor / measured:.0%} of the roofline",
            flush=True,
        )


if __name__ == "__main__":
    main()
