#!/usr/bin/env python3
"""Measures one stream with each kernel of products that vLLM has for weights of 8 and of 4 bits, and of attention.

    python3 tests/gpu/limits/kernels.py --tokenizer FOLDER [--of attention] [--only "fp8 marlin" …] [--patience 180]
        [--logs FOLDER]

The 8B shape, weights that hold nothing, full graphs. All engines are started together on one GPU and measured one after
the other, once all are ready or the patience is over: what differs between them is the kernel alone. Beside the time
between tokens stands the share of the roofline: the weights that a step reads over the bandwidth of a copy. Tokens are
drawn as our clients ask for, and the most probable ones taken; prompts have some 250 tokens, and some 1,900.

Of attention: into how many pieces FlashAttention may cut a prompt, which other kernels then put together.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.gpu.inputs import make_model
from tests.gpu.limits.roofline import copy_bandwidth

FUSED = ("fuse_norm_quant", "fuse_act_quant")
GROUP = 128
KV_BYTES = 1 << 30
# Of the GPU, for one engine: of what it takes only the KV cache is bounded, by itself.
FRACTION = 0.1
ROUNDS, WARM_ROUNDS, TOKENS = 8, 2, 150
# Words of a short prompt and of a long one, and tokens of the longest context.
SHORT, LONG, CONTEXT = 100, 800, 2304


@dataclass(frozen=True, slots=True)
class Case:
    """One engine.

    Attributes:
        backend: vLLM's name of the kernel of products; none leaves the choice to vLLM.
        weights: `fp8`, or `int4` with zero points or `int4 symmetric`.
        fusions: passes that are switched on.
        variables: of the environment, which some kernels ask for.
        pieces: that FlashAttention may cut a prompt into; none leaves the choice to vLLM.
    """

    weights: str
    backend: str | None
    fusions: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    pieces: int | None = None

    @property
    def name(self) -> str:
        """Weights, kernel, fusions and pieces."""
        more = ["fused"] if self.fusions else []
        more += [f"in {self.pieces}"] if self.pieces else []
        return " ".join([self.weights, self.backend or "plain", *more])


PRODUCTS = (
    Case("fp8", None),
    Case("fp8", None, FUSED),
    Case("fp8", "torch"),
    # vLLM takes Marlin for 8 bits by itself only where a GPU cannot multiply them.
    Case("fp8", "marlin", variables=(("VLLM_TEST_FORCE_FP8_MARLIN", "1"),)),
    Case("int4", "machete"),
    Case("int4", "marlin"),
    Case("int4 symmetric", "machete"),
    Case("int4 symmetric", "marlin"),
)
ATTENTION = tuple(
    Case(weights, backend, pieces=pieces)
    for weights, backend in (("fp8", None), ("int4", "marlin"))
    for pieces in (None, 1, 4, 8)
)
CASES = {"products": PRODUCTS, "attention": ATTENTION}


def quantized(weights: str) -> dict[str, Any]:
    """Return `quantization_config` as llm-compressor writes it."""
    tokens = None
    if weights == "fp8":
        scheme: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
        tokens = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
    else:
        symmetric = weights == "int4 symmetric"
        scheme = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": GROUP}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized" if weights == "fp8" else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme, "input_activations": tokens}},
        "ignore": ["lm_head"],
    }


def bytes_per_step(weights: str, vocabulary: int) -> float:
    """Return the bytes of weights that one step reads: all layers, and the head in 16 bits."""
    inside = sum(
        shape[0] * shape[1] for shape in make_model.layer_shapes("").values() if len(shape) == 2
    )  # norms are nothing beside them
    scales = 2 / GROUP + (0.5 / GROUP if weights == "int4" else 0)
    each = 1.0 if weights == "fp8" else 0.5 + scales
    return make_model.LAYERS * inside * each + vocabulary * make_model.HIDDEN * 2


def folder_of(case: Case, tokenizer: Path, folder: Path) -> None:
    """Write a model's folder without weights."""
    source = json.loads((tokenizer / "config.json").read_text())
    config = make_model.configuration(source) | {"quantization_config": quantized(case.weights)}
    (folder / "config.json").write_text(json.dumps(config))
    for name in make_model.TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)


def serve(case: Case, folder: Path, log: Path, pipe: Connection) -> None:
    """Start an engine in this process, tell so, wait, measure and tell."""
    os.setsid()  # so that all that it starts can be ended with it
    file = log.open("w")
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    os.environ.update(case.variables, VLLM_CACHE_ROOT=str(folder / "cache"))
    try:
        pipe.send(asyncio.run(measured(case, folder, pipe)))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error)[:200]}")
        raise


@dataclass(frozen=True, slots=True)
class Found:
    """Median times, in seconds: to the first token, and between tokens, drawn, greedy, and of a long prompt."""

    first: float
    between: float
    greedy: float
    long: float


async def measured(case: Case, folder: Path, pipe: Connection) -> Found:
    """Start the engine, wait until it is asked, and return what it takes."""
    from runtime.engines import EngineOptions
    from runtime.engines.vllm import contract
    from runtime.engines.vllm.arguments import engine_arguments, prepare_environment
    from tests.benchmarks import engine_alone
    from tests.benchmarks.work import SAMPLING, Figures, figures

    options = EngineOptions(
        gpu_fraction=FRACTION,
        max_model_len=CONTEXT,
        max_num_seqs=8,
        cudagraph_mode="FULL",
        fusions=case.fusions,
        linear_backend=case.backend,
    )
    prepare_environment(options)
    arguments = engine_arguments(folder, options)
    arguments.load_format = "dummy"
    arguments.kv_cache_memory_bytes = KV_BYTES
    if case.pieces:
        arguments.attention_config.flash_attn_max_num_splits_for_cuda_graph = case.pieces
    llm = contract.llm_class().from_engine_args(arguments)

    async def ask(rounds: int, words: int, seed: int) -> Figures:
        prompts = engine_alone.prompts(folder, 1, rounds, words, seed)
        return figures(1, await engine_alone.measure(llm, prompts, 1, rounds, TOKENS))

    try:
        for words in (SHORT, LONG):
            await ask(WARM_ROUNDS, words, 60_000_000 + words)
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        drawn, long = await ask(ROUNDS, SHORT, 61_000_000), await ask(ROUNDS // 2, LONG, 62_000_000)
        SAMPLING["temperature"] = 0.0  # of this process alone
        greedy = await ask(ROUNDS, SHORT, 63_000_000)
        return Found(drawn.ttft_p50, drawn.itl_p50, greedy.itl_p50, long.itl_p50)
    finally:
        llm.shutdown()


def end(process: SpawnProcess) -> None:
    """End an engine and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        if process.pid is not None:  # nothing else has that group
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(20)


def main() -> None:
    """Start all, then measure one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder whose tokenizer and template to use")
    parser.add_argument("--of", choices=CASES, default="products", help="what differs")
    parser.add_argument("--only", nargs="+", default=[], help="begins of names")
    parser.add_argument("--patience", type=float, default=180, help="seconds for all engines to be ready")
    parser.add_argument("--logs", type=Path, help="folder for the engines' logs")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    arguments = parser.parse_args()
    table = CASES[arguments.of]
    cases = [case for case in table if not arguments.only or case.name.startswith(tuple(arguments.only))]
    if arguments.list or not cases:
        print(*(case.name for case in table), sep="\n")
        return
    vocabulary = json.loads((arguments.tokenizer / "config.json").read_text())["vocab_size"]
    spawn = multiprocessing.get_context("spawn")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kernels-") as scratch, contextlib.ExitStack() as stack:
        logs = arguments.logs or Path(scratch)
        running: dict[Connection, Case] = {}
        for number, case in enumerate(cases):
            ours, theirs = spawn.Pipe()
            folder = Path(scratch, str(number))
            folder.mkdir()
            log = logs / f"{arguments.of}-{case.name.replace(' ', '-')}.log"
            folder_of(case, arguments.tokenizer, folder)
            process = spawn.Process(target=serve, args=(case, folder, log, theirs))
            process.start()
            stack.callback(end, process)
            theirs.close()
            running[ours] = case
        with spawn.Pool(1) as pool:  # while they import
            bandwidth = pool.apply(copy_bandwidth, (1 << 30,))
        print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s", flush=True)
        ready: list[Connection] = []
        loading = dict(running)
        while loading and (left := began + arguments.patience - time.monotonic()) > 0:
            for one in wait(list(loading), left):
                pipe = cast("Connection", one)
                case = loading.pop(pipe)
                try:
                    said = pipe.recv()
                except EOFError:
                    said = "its process ended"
                print(f"  {case.name}: {said} after {time.monotonic() - began:.0f} s", flush=True)
                if said == "ready":
                    ready.append(pipe)
        for case in loading.values():
            print(f"  {case.name}: not ready in time", flush=True)
        print("| kernel | at least | between tokens | of the roofline | greedy | | 1,900 tokens | TTFT |", flush=True)
        print("|---" * 8 + "|", flush=True)
        for pipe in ready:
            case = running[pipe]
            pipe.send("go")
            try:
                said = pipe.recv() if pipe.poll(60) else "no answer"
            except EOFError:
                said = "its process ended"
            if not isinstance(said, Found):
                print(f"| {case.name} | {said} |", flush=True)
                continue
            floor = bytes_per_step(case.weights, vocabulary) / bandwidth
            drawn, greedy = (f"{1000 * itl:.2f} ms | {floor / itl:.1%}" for itl in (said.between, said.greedy))
            cells = [case.name, f"{1000 * floor:.2f} ms", drawn, greedy]
            cells += [f"{1000 * said.long:.2f} ms", f"{1000 * said.first:.1f} ms"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
