#!/usr/bin/env python3
"""Measures a step in which every stream speaks, by the way in which graphs are captured, and says what it is made of.

    python3 tests/gpu/limits/decoding.py --tokenizer FOLDER [--weights bf16 fp8] [--ways "as shipped" …]
        [--streams 1 64 256] [--long] [--list]

The 8B shape, weights that hold nothing, prompts of some 500 tokens that are all new. Engines are started one after the
other on one GPU, those of one kind of weights with one compile cache. A step is timed from when the last stream has its
first token until the first one ends. Then steps of the fewest and of the most streams are traced: the GPU's time by
what it was for.

`full graphs, one kind` is `cudagraph_mode=FULL` as vLLM has it, where replies run in graphs that also take prompts;
`full graphs` is what this project makes of it (`graphs.py` and `attention.py` in `runtime/engines/vllm/contract/
workers`); `cut up`: full batches, too, are attended to in as many pieces as vLLM likes.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.gpu.inputs import make_model
from tests.gpu.limits.kernels import end, quantized

CONTEXT, SEQUENCES, WORDS = 2304, 256, 200
TOKENS, TRACED_TOKENS, ROUNDS = 150, 800, 3
TRACED_S = 0.4
PATIENCE_S = 240.0
# Kernels told by name, of those that took the most.
NAMED = 16
# In this order: a compiled kernel is named after what it is fused with, too.
KINDS = {
    "norms and quantizing": ("triton_", "rms_norm", "quant_kernel"),
    "attention": ("flash", "attn", "fmha", "varlen", "reshape_and_cache"),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "marlin", "machete", "splitk", "cublas"),
    "sampling": ("topk", "top_k", "topp", "softmax", "sampl", "gumbel", "argmax", "sort", "penal", "logit"),
}


@dataclass(frozen=True, slots=True)
class Way:
    """How graphs are captured.

    Attributes:
        mode: `cudagraph_mode`; none as vLLM ships it.
        own: whether replies have graphs of their own.
        whole: whether a batch that fills the GPU is not cut up.
        pieces: that FlashAttention may cut a prompt into; none leaves the choice to vLLM.
        fusions: passes that are switched on.
    """

    mode: str | None
    own: bool = True
    whole: bool = True
    pieces: int | None = None
    fusions: tuple[str, ...] = ()


WAYS = {
    "as shipped": Way(None, own=False, whole=False),
    "full graphs, one kind": Way("FULL", own=False, whole=False),
    "full graphs, cut up": Way("FULL", whole=False),
    "full graphs": Way("FULL"),
    "full graphs, fused": Way("FULL", fusions=("fuse_norm_quant", "fuse_act_quant")),
    "full graphs, in 4 pieces": Way("FULL", pieces=4),
}
USUAL = list(WAYS)[:5]


@dataclass(frozen=True, slots=True)
class Trace:
    """The GPU's time of a step, in seconds: by kind, by kernel, and without any; how many kernels it has."""

    steps: int
    kinds: dict[str, float]
    names: dict[str, tuple[float, float]]
    idle: float
    kernels: float


@dataclass(slots=True)
class Found:
    """Seconds a step by streams, and what the GPU did in it where that was traced."""

    steps: dict[int, float] = field(default_factory=dict)
    traces: dict[int, Trace] = field(default_factory=dict)


def folder_of(weights: str, tokenizer: Path, folder: Path) -> None:
    """Write a model's folder without weights."""
    config = make_model.configuration(json.loads((tokenizer / "config.json").read_text()))
    if weights != "bf16":
        config |= {"quantization_config": quantized(weights)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in make_model.TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)


def step_of(streams: list[list[float]]) -> float:
    """Return the seconds a step, of the time in which every stream speaks, from when each token came."""
    begin, over = max(times[0] for times in streams), min(times[-1] for times in streams)
    tokens = sum(begin < moment <= over for times in streams for moment in times)
    return (over - begin) * len(streams) / tokens if tokens else float("nan")


def trace_of(events: list[dict[str, Any]]) -> Trace:
    """Sum up a trace of whole steps by kind and by kernel."""
    kernels = sorted((one["ts"], one["dur"], one["name"]) for one in events if one.get("cat") == "kernel")
    counted = Counter(name for _, _, name in kernels)
    layers = make_model.LAYERS
    # A kernel of attention runs once a layer.
    steps = max((times // layers for name, times in counted.items() if kind_of(name) == "attention"), default=0) or 1
    kinds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    busy, reached = 0.0, 0.0
    for began, lasted, name in kernels:
        kinds[kind_of(name)] += lasted
        names[name] += lasted
        busy += max(0.0, began + lasted - max(began, reached))
        reached = max(reached, began + lasted)
    span = reached - kernels[0][0] if kernels else 0.0
    each = 1e-6 / steps
    return Trace(
        steps,
        {kind: time * each for kind, time in kinds.most_common()},
        {name: (time * each, counted[name] / steps) for name, time in names.most_common(NAMED)},
        (span - busy) * each,
        len(kernels) / steps,
    )


def kind_of(kernel: str) -> str:
    """Tell what a kernel is for, by its name."""
    name = kernel.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "the rest")


async def measured(folder: Path, way: Way, streams: list[int], long: bool, traces: Path) -> Found:
    """Start an engine and measure it; have some steps traced."""
    from runtime.engines import EngineOptions
    from runtime.engines.vllm import contract
    from runtime.engines.vllm.arguments import engine_arguments, prepare_environment
    from tests.benchmarks import engine_alone
    from tests.benchmarks.work import SAMPLING

    options = EngineOptions(
        gpu_fraction=0.85,
        max_model_len=CONTEXT,
        max_num_seqs=SEQUENCES,
        cudagraph_mode=way.mode,
        fusions=way.fusions,
    )
    prepare_environment(options)
    if not way.own:
        contract.seams.give_up("decoding graphs", "one kind is measured")  # the engine is forked from this process
    if not way.whole:
        contract.seams.give_up("attention in one piece", "pieces are measured")
    arguments = engine_arguments(folder, options)
    arguments.load_format = "dummy"
    from vllm import SamplingParams
    from vllm.config import ProfilerConfig
    from vllm.sampling_params import RequestOutputKind

    arguments.profiler_config = ProfilerConfig(
        profiler="torch", torch_profiler_dir=str(traces), torch_profiler_with_stack=False
    )
    if way.pieces:
        arguments.attention_config.flash_attn_max_num_splits_for_cuda_graph = way.pieces
    llm = contract.llm_class().from_engine_args(arguments)
    llm.profiler = None  # the front end's own, which is of no use here
    seeds = count(70_000_000, 10_000)

    async def speak(number: int, tokens: int, every: asyncio.Event) -> list[list[float]]:
        """When each token came of so many replies; `every` is set when each has its first."""
        seed = next(seeds)
        prompts = engine_alone.prompts(folder, number, 1, WORDS, seed)
        if long:
            prompts[0] = (prompts[0] * (CONTEXT // len(prompts[0]) + 1))[: CONTEXT - tokens - 1]
        sampling = SamplingParams(**SAMPLING, max_tokens=tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
        begun = 0

        async def one(prompt: list[int], name: str) -> list[float]:
            nonlocal begun
            times = []
            async for _ in llm.generate({"prompt_token_ids": prompt}, sampling, name):
                times.append(time.perf_counter())
                if len(times) == 1:
                    begun += 1
                    if begun == number:
                        every.set()
            return times

        return await asyncio.gather(*(one(prompt, f"{seed}-{at}") for at, prompt in enumerate(prompts)))

    found = Found()
    try:
        for number in streams:
            steps = [step_of(await speak(number, TOKENS, asyncio.Event())) for _ in range(ROUNDS + 1)]
            found.steps[number] = median(steps[1:])
        for number in sorted({min(streams), max(streams)}):
            every = asyncio.Event()
            whole = asyncio.ensure_future(speak(number, TRACED_TOKENS, every))
            await every.wait()
            await llm.start_profile()
            await asyncio.sleep(TRACED_S)
            await llm.stop_profile()
            whole.cancel()
            await asyncio.sleep(1)
            found.traces[number] = await asyncio.to_thread(take_trace, traces)
    except Exception:  # the steps are worth telling without
        traceback.print_exc()
    finally:
        llm.shutdown()
    return found


def take_trace(traces: Path) -> Trace:
    """Read what the worker traced last, and remove it."""
    [file] = [path for path in traces.rglob("*.json*") if "async_llm" not in path.name]
    read = gzip.decompress if file.suffix == ".gz" else bytes
    events = json.loads(read(file.read_bytes()))["traceEvents"]
    file.unlink()
    return trace_of(events)


def serve(folder: Path, way: Way, streams: list[int], long: bool, scratch: Path, log: Path, pipe: Connection) -> None:
    """Measure an engine in this process, and tell."""
    os.setsid()  # so that all that it starts can be ended with it
    file = log.open("w")
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    os.environ["VLLM_CACHE_ROOT"] = str(scratch / "cache" / folder.name)
    traces = Path(tempfile.mkdtemp(dir=scratch))
    try:
        pipe.send(asyncio.run(measured(folder, way, streams, long, traces)))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error)[:300]}")
        raise


def tell(found: Found) -> None:
    """Print what was found."""
    for number, seconds in found.steps.items():
        print(f"  {number} streams: {1000 * seconds:.3f} ms a step", flush=True)
    for number, trace in found.traces.items():
        kinds = ", ".join(f"{kind} {1000 * seconds:.2f}" for kind, seconds in trace.kinds.items())
        print(
            f"  {number} streams, {trace.kernels:.0f} kernels a step: {kinds}, idle {1000 * trace.idle:.2f} ms",
            flush=True,
        )
        for name, (seconds, times) in trace.names.items():
            print(f"    {1000 * seconds:7.3f} ms in {times:6.1f}  {name[:150]}", flush=True)


def main() -> None:
    """Measure each kind of weights in each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder whose tokenizer and template to use")
    parser.add_argument("--weights", nargs="+", default=["bf16", "fp8"], choices=["bf16", "fp8", "int4"])
    parser.add_argument("--ways", nargs="+", default=USUAL, choices=WAYS)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--long", action="store_true", help="one history is as long as the model takes")
    parser.add_argument("--logs", type=Path, help="folder for the engines' logs")
    parser.add_argument("--list", action="store_true", help="print the names of the ways and end")
    arguments = parser.parse_args()
    if arguments.list:
        print(*WAYS, sep="\n")
        return
    spawn = multiprocessing.get_context("spawn")
    failed = []
    with tempfile.TemporaryDirectory(prefix="decoding-") as name:
        scratch = Path(name)
        for weights in arguments.weights:
            folder_of(weights, arguments.tokenizer, scratch / weights)
            for title in arguments.ways:
                way = WAYS[title]
                if way.fusions and weights != "fp8":
                    continue
                began = time.monotonic()
                ours, theirs = spawn.Pipe()
                log = (arguments.logs or scratch) / f"decoding-{weights}-{title.replace(' ', '-')}.log"
                given = (scratch / weights, way, arguments.streams, arguments.long, scratch, log, theirs)
                process = spawn.Process(target=serve, args=given)
                process.start()
                theirs.close()
                try:
                    said = ours.recv() if ours.poll(PATIENCE_S) else "no answer"
                except EOFError:
                    said = "its process ended"
                end(process)
                print(f"{weights}, {title}, {time.monotonic() - began:.0f} s:", flush=True)
                if isinstance(said, Found):
                    tell(said)
                if not isinstance(said, Found) or said.steps.keys() != set(arguments.streams):
                    failed.append(f"{weights}, {title}")
                    print(
                        f"  {'its log says why not all was measured' if isinstance(said, Found) else said}", flush=True
                    )
    if failed:
        sys.exit(f"decoding.py: not measured: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
