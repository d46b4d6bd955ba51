#!/usr/bin/env python3
"""Tunes vLLM's options on this GPU, and prints every candidate beside the engine as vLLM ships it.

    python3 tests/gpu/tune.py FOLDER [FOLDER …] [--goal latency] [--method fp8] [--streams 256] [--kv-fp8]
        [--candidates "full graphs, machete"] [--minutes 8] [--no-text] [--json FILE] [--list]

A folder is an artifact or any Hugging Face folder. One run: the plain options first and last, candidates between by
their worth, the winner's text scored. Ratios are of medians, to the plain options. The share of the roofline is the
bytes of weights that a step reads over the bandwidth of a copy, over the time between tokens. With weights of 4 bits
(`--method awq`) the column of kernels says which one vLLM took, and the rows of Marlin and Machete which is faster.

`--minutes` bounds the whole, the folders share it: a candidate is begun while there is time for it, for the plain
options again and for the winner's text. `--no-text` leaves the last out, and so has time for one candidate more. Each
figure is printed, and the JSON written, as soon as it was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.progress import PlainProgress
from pipeline.tuning.budget import Budget
from pipeline.tuning.candidates import Candidate, candidates
from pipeline.tuning.choosing import median_of
from pipeline.tuning.trials import TuningRequest, situation, trials_of
from pipeline.tuning.tuner import Judge, Measured, Replies, Trial, TrialError, tune
from pipeline.validate.text_under_load import TextLoss
from runtime.artifact import EngineChoices, Limits, TriedOptions, TunedFigures, TunedOptions
from runtime.engines.tuned import key_of
from runtime.host import machine
from tests.gpu.limits.roofline import bytes_per_step, copy_bandwidth

# Each figure: its field and its heading.
FIGURES = (
    ("ttft_one_ms", "TTFT, 1 stream, ms"),
    ("ttft_ms", "TTFT, 64 together, ms"),
    ("ttft_long_ms", "TTFT, a long new prompt, ms"),
    ("tokens_per_s", "tokens/s, all streams"),
    ("itl_ms", "ITL, 1 stream, ms"),
)
# What is to be reached beside the engine as shipped: a time at most, tokens a second at least.
RATIO_TARGETS = {
    "ttft_one_ms": {"none": 0.65, "fp8": 0.65},
    "ttft_ms": {"none": 0.8, "fp8": 0.7},
    "tokens_per_s": {"none": 1.01, "fp8": 1.03},
}
ROOFLINE_TARGETS = {"none": 0.77, "fp8": 0.66, "awq": 0.42}


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate's line: medians, their ratios to the plain options, and the share of the roofline."""

    name: str
    options: str
    outcome: str
    reason: str
    figures: dict[str, float]
    ratios: dict[str, float]
    roofline: float | None
    kernels: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The row as JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def rows_of(tuned: TunedOptions, floor_ms: float | None) -> list[Row]:
    """Return a row for each candidate, in the order in which they were tried.

    Args:
        floor_ms: the least time between tokens; none where it is not known.
    """
    base = median_of([run for one in tuned.candidates if one.outcome == "base" for run in one.runs])
    return [_row(one, base, floor_ms) for one in tuned.candidates]


def _row(one: TriedOptions, base: TunedFigures, floor_ms: float | None) -> Row:
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    roofline = None
    if one.runs:
        found = median_of(one.runs)
        for name, _ in FIGURES:
            mine, theirs = getattr(found, name), getattr(base, name)
            if mine is not None:
                figures[name] = mine
                ratios[name] = mine / theirs
        roofline = floor_ms / found.itl_ms if floor_ms else None
    return Row(one.name, one.options.text, one.outcome, one.reason, figures, ratios, roofline, one.kernels)


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table."""
    heads = [head for _, head in FIGURES]
    lines = [
        f"| candidate | {' | '.join(f'{head} | ×' for head in heads)} | of the roofline | kernels | |",
        "|---" * (2 * len(heads) + 4) + "|",
    ]
    for row in rows:
        cells = []
        for name, _ in FIGURES:
            cells += [f"{row.figures[name]:.4g}", f"{row.ratios[name]:.3f}"] if name in row.figures else ["", ""]
        cells += [f"{row.roofline:.0%}" if row.roofline else "", ", ".join(row.kernels)]
        lines.append(f"| {row.name} | {' | '.join(cells)} | {row.outcome}: {row.reason} |")
    return lines


def against_targets(rows: Sequence[Row], method: str) -> list[str]:
    """Return a line for each target: the best row that was measured, and whether it is met."""
    lines = []
    for name, head in FIGURES:
        wanted = RATIO_TARGETS.get(name, {}).get(method)
        tried = [row for row in rows if name in row.ratios and row.outcome != "base"]
        if wanted is None or not tried:
            continue
        more = name == "tokens_per_s"
        best = (max if more else min)(tried, key=lambda row, name=name: row.ratios[name])
        met = best.ratios[name] >= wanted if more else best.ratios[name] <= wanted
        sign = "at least" if more else "at most"
        lines.append(
            f"{head}: {best.ratios[name]:.3f} × ({best.name}), {sign} {wanted:g}: {'met' if met else 'NOT MET'}"
        )
    shares = [row for row in rows if row.roofline]
    if shares and (share := ROOFLINE_TARGETS.get(method)):
        best = max(shares, key=lambda row: row.roofline or 0.0)
        met = (best.roofline or 0.0) >= share
        lines.append(
            f"roofline: {best.roofline:.1%} ({best.name}), at least {share:.0%}: {'met' if met else 'NOT MET'}"
        )
    return lines


def picked(known: Sequence[Candidate], names: Sequence[str]) -> list[Candidate]:
    """Return the table with what was not asked for marked so.

    A name picks the candidate that is called so, else all with that in their names, capitals aside.

    Raises:
        ValueError: a name that picks none.
    """
    if not names:
        return list(known)
    asked: set[str] = set()
    for name in names:
        called = [one.name for one in known if one.name.lower() == name.lower()]
        found = called or [one.name for one in known if name.lower() in one.name.lower()]
        if not found:
            raise ValueError(f"no candidate is called {name!r}; there are: {'; '.join(one.name for one in known)}")
        asked |= set(found)
    return [one if one.name in asked else replace(one, not_tried=one.not_tried or "not asked for") for one in known]


def names_in(text: str) -> list[str]:
    """Return the names between commas; a comma within a number is none.

    >>> names_in("full graphs, steps of 1,024,machete")
    ['full graphs', 'steps of 1,024', 'machete']
    """
    return [name.strip() for name in re.split(r",(?!\d)", text) if name.strip()]


def told(trial: Trial, keep: Callable[[str, Measured], None]) -> Trial:
    """A trial that prints what it measured at once."""

    def run(choices: EngineChoices) -> Measured:
        began = time.monotonic()
        measured = trial(choices)
        found = median_of(measured.runs)
        figures = "  ".join(f"{name} {getattr(found, name) or math.nan:.4g}" for name, _ in FIGURES)
        print(
            f"  {choices.text}: {figures}  {', '.join(measured.kernels)}  ({time.monotonic() - began:.0f} s)",
            flush=True,
        )
        keep(choices.text, measured)
        return measured

    return run


def unread(_: Replies, __: Replies) -> TextLoss:
    """Stands for the judge where texts are not scored: nothing is proven."""
    raise TrialError("--no-text")


def main() -> None:
    """Tune for each folder, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--goal", choices=("latency", "throughput"), default="latency")
    parser.add_argument("--method", default="none", help="how the weights are quantized: none, fp8, awq, gptq, int8")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--kv-fp8", action="store_true")
    parser.add_argument("--candidates", default="", help="names, or parts of names, with commas between")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for everything; without, as long as it takes")
    parser.add_argument("--no-text", action="store_true", help="do not score the winner's replies")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--bandwidth", type=float, help="bytes a second of a copy, measured before (else measured now)")
    parser.add_argument("--list", action="store_true", help="print the candidates and end")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    here = machine.describe()
    limits = Limits(max_batch_size=options.streams, max_input_len=4096, max_output_len=512, max_model_len=4624)
    names = names_in(options.candidates)
    results: dict[str, Any] = {"gpu": here.gpus[0].name if here.gpus else None, "packages": dict(here.packages)}

    def write() -> None:
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")

    def requested(folder: Path) -> TuningRequest:
        return TuningRequest(options.goal, folder, "vllm", limits, options.method, options.kv_fp8)

    def known(folder: Path) -> list[Candidate]:
        try:
            return picked(candidates(situation(requested(folder), here, options.streams)), names)
        except ValueError as error:
            parser.error(str(error))

    tables = {folder: known(folder) for folder in options.folders}
    if options.list:
        for one in tables[options.folders[0]]:
            print(f"{one.name:48} {one.choices.text:60} {one.not_tried}")
        return
    bandwidth: float | None = options.bandwidth
    if here.gpus and bandwidth is None:
        # In a process of its own: this one starts engines and must not hold the GPU.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            bandwidth = pool.apply(copy_bandwidth)
    if bandwidth:
        print(f"copy bandwidth {bandwidth / 1e12:.3f} TB/s", flush=True)
    results["bandwidth"] = bandwidth
    for number, folder in enumerate(options.folders):
        document: dict[str, Any] = {"measured": {}}
        results[str(folder)] = document

        def keep(text: str, measured: Measured, document: dict[str, Any] = document) -> None:
            document["measured"].setdefault(text, []).append(
                {"runs": [run.model_dump() for run in measured.runs], "kernels": measured.kernels}
            )
            write()

        floor_ms = 1000 * bytes_per_step(folder) / bandwidth if bandwidth else None
        share = (until - time.monotonic()) / (len(options.folders) - number)
        budget = Budget(share, closing=1 if options.no_text else 2)
        with tempfile.TemporaryDirectory(prefix="tune-") as scratch:
            trials = trials_of(requested(folder), Path(scratch), budget)
            judge: Judge = unread if options.no_text else trials.judge
            trial = told(trials.measure, keep)
            try:
                tuned = tune(
                    options.goal,
                    key_of(here, limits),
                    tables[folder],
                    trial=trial,
                    judge=judge,
                    progress=PlainProgress(),
                    budget=budget,
                )
            except TrialError as error:
                print(f"{folder}: {error}", file=sys.stderr, flush=True)
                document["error"] = str(error)
                write()
                continue
        rows = rows_of(tuned, floor_ms)
        floor = f", least ITL {floor_ms:.2f} ms" if floor_ms else ""
        print(f"\n{folder}: {tuned.choices.text} (noise {tuned.noise:.1%}{floor})\n", *table(rows), sep="\n")
        print("", *against_targets(rows, options.method), sep="\n", flush=True)
        document |= {
            "choices": tuned.choices.model_dump(mode="json"),
            "noise": tuned.noise,
            "floor_ms": floor_ms,
            "rows": [row.document() for row in rows],
            "tuned": tuned.model_dump(mode="json"),
        }
        write()


if __name__ == "__main__":
    main()
