"""The cost of a turn's start around an engine that costs nothing: from the client's message to the engine and back.

Once around a table alone, and once with vLLM's own output handling before it (`front.py`), which has a cost of its own
at the first token.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

from tests.benchmarks.front import REPLY, TEXT, alone, engine_request
from tests.benchmarks.gateway import cpu_seconds, instant
from tests.benchmarks.load import Target, run_load
from tests.benchmarks.work import figures
from tests.harness.server import Server

STREAMS = (1, 64, 256)
WORDS = 200
# Seconds between one stream's tokens: what an H100 takes for a model of 8B shape in bfloat16.
STEP = 0.0064


def starts_section(folder: Path) -> None:
    """Measure replies of one token behind a cached persona, rendered by the artifact's own tokenizer."""
    print(f"\nstarts: turns of one token, a persona of {WORDS} words kept from turn to turn ({folder})")
    if (folder / "build_metadata.json").exists():
        _ready(folder)
    for name, variables in (("table", {}), ("vllm", {"INSTANT_ENGINE": "vllm"})):
        _measure(name, folder, variables)
    _paced(folder)
    _first_tokens(folder)


def _ready(folder: Path) -> None:
    """Measure from the server's execution to readiness, phase by phase, with the artifact's own engine."""
    with Server(folder) as server:
        seconds = server.wait_ready()
        phases = ", ".join(f"{phase} {took:.1f}" for phase, took in server.start_phases().items())
        print(f"starts: ready after {seconds:.1f} s: {phases}", flush=True)
        server.stop()


def _paced(folder: Path, rounds: int = 12) -> None:
    """Measure one stream at an engine's pace, with caches cold because the processor slept before each token."""
    import uvloop

    vllm, first = uvloop.run(alone(folder, 1, rounds, STEP))
    with instant(REPLY, STEP, INSTANT_MODEL=str(folder), INSTANT_ENGINE="vllm") as server:
        server.wait_ready()
        target = Target("yap", server.url, server.api_key, words=WORDS)
        run_load(target, 1, 2, 1, 1, 1)
        before = cpu_seconds(server)
        samples = run_load(target, 1, rounds, 1, 1000, 1)
        used = (cpu_seconds(server) - before) / sum(sample.tokens for sample in samples) * 1e6
        server.stop()
    above = (figures(1, samples).ttft_p50 - first) * 1000
    inside = (median(sample.server_ttft for sample in samples) - first) * 1000
    print(
        f"starts: a token in {STEP * 1000:.1f} ms: vLLM's part alone takes {vllm:.0f} µs CPU a token, the server "
        f"{used:.0f}; TTFT p50 {above:.2f} ms above vLLM's part, {inside:.2f} by the server's clock",
        flush=True,
    )


def _first_tokens(folder: Path, rounds: int = 200) -> None:
    """Measure what vLLM's detokenizer takes for a reply's first token, with the prompt and without."""
    from transformers import AutoTokenizer
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    from runtime.engines import Sampling
    from runtime.engines.vllm.arguments import parameters
    from runtime.engines.vllm.text import forget_prompt

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(TEXT * 250)["input_ids"]
    for size in (500, 5000):
        took = {}
        for forgotten in (False, True):
            request = engine_request("1", ids[:size], parameters(Sampling()))
            states = [
                SimpleNamespace(detokenizer=FastIncrementalDetokenizer(tokenizer, request)) for _ in range(rounds)
            ]
            began = time.process_time()
            for state in states:
                if forgotten:
                    forget_prompt(state, ids[:size])
                state.detokenizer.update([ids[0]], False)
            took[forgotten] = (time.process_time() - began) / rounds * 1e6
        print(
            f"starts: text of the first token after {len(ids[:size])} tokens of prompt: "
            f"{took[False]:.0f} µs with all of them, {took[True]:.0f} µs with the last ones"
        )


def _measure(name: str, folder: Path, variables: dict[str, str]) -> None:
    with instant(1, INSTANT_MODEL=str(folder), **variables) as server:
        server.wait_ready()
        target = Target("yap", server.url, server.api_key, words=WORDS)
        for streams in STREAMS:
            rounds, seed = max(8, 512 // streams), streams * 100_000
            run_load(target, streams, 1, 1, seed, seed)
            before = cpu_seconds(server)
            samples = run_load(target, streams, rounds, 1, seed + 1000, seed)
            used = cpu_seconds(server) - before
            found = figures(streams, samples)
            print(
                f"starts: {name:5} {streams:4} streams: {used / found.turns * 1e6:6.1f} µs server CPU a turn, TTFT p50 "
                f"{found.ttft_p50 * 1000:7.2f} ms (p95 {found.ttft_p95 * 1000:.2f}), by the server's clock "
                f"{median(sample.server_ttft for sample in samples) * 1000:.2f} ms  ({found.turns} turns)",
                flush=True,
            )
        server.stop()
