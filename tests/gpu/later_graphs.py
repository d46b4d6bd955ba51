#!/usr/bin/env python3
"""Holds an engine that captures most graphs after readiness against one that captures all before it.

    python3 tests/gpu/later_graphs.py FOLDER [FOLDER …] [--streams 256] [--mode FULL]

A folder is a Hugging Face folder of a real model, such as `python -m pipeline.embedded chat FOLDER` writes: of random
weights every text is as probable as garbage. Told are the seconds until an engine has generated, how long each graph
takes that is left, and by how much less probable replies under load are than without any graph, in nats a token, scored
by the engine that captured all of them: of that one; with a few graphs, at once; when the rest was captured; and while
it is captured between the steps of those replies. Needs vLLM 0.31. With 512 streams the embedded chat model fills a
Hopper GPU, whose graphs have attention in one piece then.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.embedded.texts import heldout_texts
from pipeline.validate.text_under_load import Asked, TextScore, asked_of, loss_of, replies_of, score_of
from runtime.engines import EngineOptions
from runtime.engines.vllm import exercise
from runtime.engines.vllm.engine import VllmEngine
from runtime.text.tokenizer import load_tokenizer

PATIENCE_S = 60.0
# As vLLM chooses them, without those that come first.
SIZES = {*range(8, 256, 8), *range(256, 513, 16)} - {2**power for power in range(10)}


def free_memory() -> int:
    """Return the MiB that are free on the GPU; asked of the driver, so that this process needs none of it."""
    which = ["-i", visible] if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) else []
    words = ["nvidia-smi", *which, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0])


async def started(folder: Path, options: EngineOptions) -> VllmEngine:
    """Start an engine, and tell how long that took."""
    began = time.monotonic()
    engine = VllmEngine(folder, options)
    await engine.start()
    when = "a few before readiness" if options.graphs_after_readiness else "all before readiness"
    which = "no graphs" if options.cudagraph_mode == "NONE" else f"{options.cudagraph_mode}, {when}"
    print(f"{folder.name}, {which}: generates after {time.monotonic() - began:.1f} s", flush=True)
    return engine


async def spoken(engine: VllmEngine, asked: list[Asked], streams: int, when: str) -> list[tuple[int, ...]]:
    """Have an engine reply to all, and tell how fast."""
    await engine.reset_caches()
    began = time.monotonic()
    replies = await replies_of(engine, asked, streams)
    tokens = sum(map(len, replies))
    print(f"  {when}: {tokens / (time.monotonic() - began):,.0f} tokens/s", flush=True)
    return replies


async def while_captured(
    folder: Path, options: EngineOptions, asked: list[Asked], streams: int, times: list[float]
) -> list[tuple[int, ...]]:
    """Have an engine reply to all while it captures, without waiting for silence."""
    times.clear()
    patience, exercise.PATIENCE_S = exercise.PATIENCE_S, 0.1
    try:
        engine = await started(folder, options)
        try:
            replies = await spoken(engine, asked, streams, "while the rest is captured")
            print(f"    {len(times)} captured meanwhile, {max(times, default=0):.3f} s at most", flush=True)
            if not times:
                sys.exit(
                    "later_graphs.py: expected some captured while all spoke, found none; the engine's log says why"
                )
        finally:
            await engine.shutdown()
    finally:
        exercise.PATIENCE_S = patience
    return replies


async def main() -> None:
    """Measure each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--mode", default="FULL", help="cudagraph_mode")
    arguments = parser.parse_args()
    times: list[float] = []
    capture = exercise.in_silence

    async def timed(step: exercise.Step, running: exercise.Running) -> None:
        async def one() -> int:
            began = time.monotonic()
            left = await step()
            times.append(time.monotonic() - began)
            return left

        await capture(one, running)

    exercise.in_silence = timed
    for folder in arguments.folders:
        tokenizer = load_tokenizer(folder)
        texts = [list(tokenizer(text)["input_ids"]) for text in heldout_texts()]
        asked = asked_of(texts, arguments.streams, longest_prompt=400, longest_reply=100)
        options = EngineOptions(max_model_len=1024, max_num_seqs=arguments.streams, cudagraph_mode=arguments.mode)
        few = replace(options, graphs_after_readiness=True)
        engine = await started(folder, replace(options, cudagraph_mode="NONE"))
        try:
            plain = await spoken(engine, asked, arguments.streams, "without graphs")
        finally:
            await engine.shutdown()
        await (await started(folder, options)).shutdown()  # fills the compile cache, which differs from that one's
        times.clear()
        engine = await started(folder, few)
        free = free_memory()
        try:
            at_once = await spoken(engine, asked, arguments.streams, "with a few graphs")
            until, known = time.monotonic() + PATIENCE_S, -1
            while time.monotonic() < until and known != len(times):
                known = len(times)
                await asyncio.sleep(exercise.SILENCE_S + 2)
            told = f"  {len(times)} captured later, {max(times, default=0):.3f} s at most, {sum(times):.1f} s together"
            print(f"{told}, {free - free_memory()} MiB more of the GPU", flush=True)
            if len(times) < len(SIZES) // 2:
                sys.exit(f"later_graphs.py: expected some {len(SIZES)} captured later; the engine's log says why not")
            later = await spoken(engine, asked, arguments.streams, "with all of them")
        finally:
            await engine.shutdown()
        between = await while_captured(folder, few, asked, arguments.streams, times)
        engine = await started(folder, options)
        try:
            before = await spoken(engine, asked, arguments.streams, "with all of them, captured before")
            scores: dict[str, TextScore] = {}
            for when, replies in {
                "none": plain,
                "all before": before,
                "a few": at_once,
                "the rest later": later,
                "the rest meanwhile": between,
            }.items():
                await engine.reset_caches()
                scores[when] = await score_of(engine, asked, replies)
                loss = loss_of(scores[when], scores["none"])
                print(f"  {when}: {loss}: {'passed' if loss.passed else 'NOT PASSED'}", flush=True)
        finally:
            await engine.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
