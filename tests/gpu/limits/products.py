#!/usr/bin/env python3
"""Times the matrix products of a step of 8B shape, as one graph of the GPU, by how many rows the step has.

    python3 tests/gpu/limits/products.py [--rows 1 8 64 256 512]

The least that a step takes: everything else (attention, norms, sampling, what lies between kernels) comes on top. For
other kernels of cuBLAS: `TORCH_BLAS_PREFER_CUBLASLT=1`, and `CUBLASLT_WORKSPACE_SIZE=32768` with it.
Each layer has weights of its own, so that none is found in a cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch.nn.functional import linear

LAYERS = 32
# Of an 8B Llama, outputs and inputs: queries with keys and values, attention's output, gate with up, down.
SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
HEAD = (49152, 4096)
REPLAYS, REPEATS = 10, 3


def graph_ms(work: Callable[[], None]) -> float:
    """Return the milliseconds that a replay of the captured work takes, the best of some."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    graph.replay()
    times = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / REPLAYS)
    return min(times)


def main() -> None:
    """Print a line for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256, 512, 1024, 2048])
    arguments = parser.parse_args()

    def weight(shape: tuple[int, int]) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02

    layers = [{name: weight(shape) for name, shape in SHAPES.items()} for _ in range(LAYERS)]
    head = weight(HEAD)
    for rows in arguments.rows:
        batch = {
            size: torch.randn(rows, size, device="cuda", dtype=torch.bfloat16)
            for size in {inputs for _, inputs in SHAPES.values()}
        }

        def products(names: tuple[str, ...], batch: dict[int, torch.Tensor] = batch) -> None:
            for layer in layers:
                for name in names:
                    linear(batch[SHAPES[name][1]], layer[name])

        def step(batch: dict[int, torch.Tensor] = batch) -> None:
            products(tuple(SHAPES))
            linear(batch[HEAD[1]], head)

        told = [f"{name} {graph_ms(lambda name=name: products((name,))) / LAYERS * 1000:.1f}" for name in SHAPES]  # type: ignore[misc]
        print(f"{rows} rows: {', '.join(told)} µs a layer; with the head {graph_ms(step):.3f} ms a step", flush=True)


if __name__ == "__main__":
    main()
