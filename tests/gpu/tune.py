#!/usr/bin/env python3
"""Tunes vLLM's options on this GPU, and prints every candidate beside the engine as vLLM ships it.

    python3 tests/gpu/tune.py FOLDER [FOLDER …] [--goal latency] [--method fp8] [--streams 256] [--kv-fp8]

A folder is an artifact or any Hugging Face folder. One run: the plain options first and last, every candidate between,
the winner's text scored. The ratios are of medians, to the plain options. With weights of 4 bits (`--method awq`) the
rows of Marlin and Machete say which is faster at one row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.progress import PlainProgress
from pipeline.tuning.choosing import median_of
from pipeline.tuning.trials import TuningRequest, tune_here
from runtime.artifact import Limits, TunedFigures, TunedOptions
from runtime.host import machine


def table(tuned: TunedOptions) -> list[str]:
    """Return the lines of the table: each candidate's medians, their ratios to the plain options, and its outcome."""
    base = median_of([run for one in tuned.candidates if one.outcome == "base" for run in one.runs])
    lines = [
        "| candidate | ITL ms | TTFT ms | tokens/s | × ITL | × TTFT | × tokens/s | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in tuned.candidates:
        cells = [""] * 6
        if one.runs:
            found = median_of(one.runs)
            names = list(TunedFigures.model_fields)
            cells = [f"{getattr(found, name):.4g}" for name in names]
            cells += [f"{getattr(found, name) / getattr(base, name):.3f}" for name in names]
        lines.append(f"| {one.name} | {' | '.join(cells)} | {one.outcome}: {one.reason} |")
    return lines


def main() -> None:
    """Tune for each folder, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--goal", choices=("latency", "throughput"), default="latency")
    parser.add_argument("--method", default="none", help="how the weights are quantized: none, fp8, awq, gptq, int8")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--kv-fp8", action="store_true")
    options = parser.parse_args()
    limits = Limits(max_batch_size=options.streams, max_input_len=4096, max_output_len=512, max_model_len=4624)
    for folder in options.folders:
        request = TuningRequest(options.goal, folder, "vllm", limits, options.method, options.kv_fp8)
        with tempfile.TemporaryDirectory(prefix="tune-") as scratch:
            tuned = tune_here(request, machine.describe(), Path(scratch), PlainProgress())
        print(f"\n{folder}: {tuned.choices.text} (noise {tuned.noise:.1%})\n", *table(tuned), sep="\n")
        print(json.dumps(tuned.model_dump(mode="json")))


if __name__ == "__main__":
    main()
