#!/usr/bin/env python3
"""Classifiers on the GPU in float16, beside a chat engine that is busy: latency, and memory within its share.

    python3 tests/gpu/classifiers.py CHAT CLASSIFIER [--longformer]

CHAT is an artifact, CLASSIFIER a Hugging Face folder. `--longformer` adds a Longformer of base size with random
weights and the classifier's tokenizer: what it decides means nothing, how long it takes does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runtime.deployment.classifier import Decision, ToolClassifier
from runtime.engines import EngineOptions, Sampling
from runtime.engines.vllm.engine import VllmEngine
from tests.benchmarks.work import work
from tests.client.statistics import percentile

CHAT_SHARE, TOOL_SHARE = 0.70, 0.20
STREAMS = 32


def longformer(like: Path, out: Path) -> Path:
    """Write an untrained Longformer of base size, with the other classifier's tokenizer."""
    from transformers import AutoTokenizer, LongformerConfig, LongformerForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(like, local_files_only=True)
    tokenizer.save_pretrained(out)
    config = LongformerConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=4098, num_labels=2
    )
    LongformerForSequenceClassification(config).save_pretrained(out)
    return out


async def chatter(engine: VllmEngine, number: int) -> None:
    """Keep one stream of the chat model busy, without end."""
    while True:
        await engine.generate([number + 1] * 64, Sampling(max_tokens=400, ignore_eos=True), lambda delta: None)


async def timed(classifier: ToolClassifier, history: list[str], utterance: str) -> tuple[Decision, float]:
    """A decision, and the seconds that it took."""
    began = time.perf_counter()
    return await classifier.decide(history, utterance), time.perf_counter() - began


async def decide(folder: Path, name: str) -> bool:
    """Measure one classifier; returns whether it kept to its memory and gave probabilities."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    classifier = ToolClassifier(folder, threshold=0.66, max_tokens=1536, device="cuda", gpu_fraction=TOOL_SHARE)
    await classifier.start()
    history = [work(number, 12).utterance for number in range(6)]
    sound = True
    for streams, rounds in ((1, 100), (64, 8)):
        answers: list[tuple[Decision, float]] = []
        for turn in range(rounds):
            questions = (timed(classifier, history, f"Look at this, {turn} {number}") for number in range(streams))
            answers += await asyncio.gather(*questions)
        # Half precision may overflow, and what is not a number is no probability.
        sound = sound and all(0 <= decision.probability <= 1 for decision, _ in answers)
        waits = sorted(seconds for _, seconds in answers)
        cells = "  ".join(f"p{p} {percentile(waits, p) * 1000:6.1f} ms" for p in (50, 99))
        print(f"{name:12} {streams:3} at once  {cells}  ({len(waits)} decisions)", flush=True)
    dtype = str(classifier._model._model.dtype)
    peak = torch.cuda.max_memory_reserved()
    share = peak / torch.cuda.get_device_properties(0).total_memory
    told = "probabilities" if sound else "NO PROBABILITIES"
    used = f"{peak / 2**20:.0f} MiB at most, {share:.2%} of the GPU (allowed {TOOL_SHARE:.0%})"
    print(f"{name:12} {dtype}, {told}, {used}")
    await classifier.shutdown()
    return share <= TOOL_SHARE and dtype == "torch.float16" and sound


async def measure(chat: Path, classifiers: dict[str, Path]) -> bool:
    """Measure all classifiers, one after the other, while the chat model generates."""
    limits = json.loads((chat / "build_metadata.json").read_text())["chat"]["limits"]
    options = EngineOptions(
        gpu_fraction=CHAT_SHARE, max_model_len=limits["max_model_len"], max_num_seqs=limits["max_batch_size"]
    )
    engine = VllmEngine(chat, options, compile_cache=chat / "compile_cache")
    await engine.start()
    talking = [asyncio.create_task(chatter(engine, number)) for number in range(STREAMS)]
    try:
        return all([await decide(folder, name) for name, folder in classifiers.items()])
    finally:
        for task in talking:
            task.cancel()
        for task in talking:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await engine.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chat", type=Path)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("--longformer", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        classifiers = {"given": arguments.classifier}
        if arguments.longformer:
            classifiers["longformer"] = longformer(arguments.classifier, Path(scratch))
        sys.exit(0 if asyncio.run(measure(arguments.chat, classifiers)) else 1)


if __name__ == "__main__":
    main()
