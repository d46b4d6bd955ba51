"""Every family by every method, planned and quantized for real, and the table of it in docs/models.md.

    python -m tests.harness.models.matrix [--families SLUG…] [--methods METHOD…] [--serve] [--results FILE]

A cell is what a user would see: the plan is made by the planner, the job by what the plan says, and the quantizer is
the project's own, with what it reads back. TensorRT-LLM's methods go through ModelOpt as for its PyTorch backend, on a
CPU. Results are kept in a file as they come, so that a run that was ended goes on. `--serve` also lets vLLM's build for
CPUs answer a turn from what INT8 wrote, which it computes best.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

from pipeline import lanes
from pipeline.plan import BuildRequest, ChatPlan, hardware
from pipeline.plan.prepare import prepare
from pipeline.problem import WrongRequestError
from pipeline.progress import PlainProgress
from pipeline.quantize import QuantizeJob, trt, vllm
from pipeline.stages.stage import StageError
from runtime.host import machine
from tests.harness.models import tiny
from tests.harness.models.families import BY_SLUG, FAMILIES, Family
from tests.harness.models.forks import ROOT, Forks, tail
from tests.harness.trt.lane import H200

DOCUMENT = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- written by `make test-models` -->", "<!-- to here -->"
QUANTIZER, ENGINE = ROOT / ".venv-quantize/bin/python", ROOT / ".venv/bin/python"

# Columns: what a method is called in its lane, and the lane.
COMPRESSED = ("awq", "gptq", "fp8", "int8")
MODELOPT = tuple(f"trt {method}" for method in trt.FORMATS)
METHODS = (*COMPRESSED, *MODELOPT)
SERVED_METHOD, SERVED = "int8", "served"

QUANTIZER_LIBRARIES = (
    "torch",
    "transformers",
    "llmcompressor",
    "compressed_tensors.quantization",
    "llmcompressor.modifiers.gptq",
    "llmcompressor.modifiers.quantization",
    "llmcompressor.modifiers.transform.awq",
    "llmcompressor.modifiers.transform.smoothquant",
    "modelopt.torch.quantization",
    "modelopt.torch.export",
    "pipeline.quantize.loading",
    "pipeline.quantize.smoothing",
    "pipeline.quantize.trt_folder",
    "pipeline.quantize.trt_checkpoint",
    "pipeline.quantize.read_back",
    "pipeline.lanes.lane",
)
ENGINE_LIBRARIES = ("vllm", "vllm.v1.engine.async_llm", "vllm.v1.worker.cpu_worker", "runtime.engines.vllm.engine")

packages_of, described = cache(hardware._packages_of), cache(machine.describe)

WORKS, ANSWERS, NOTHING, NOT_TRIED = "works", "answers", "nothing to serve", "not tried"

Results = dict[str, dict[str, str]]


class Matrix:
    """Models and what became of them, in a folder; the quantizer's libraries are loaded once."""

    def __init__(self, folder: Path, quantizers: Forks) -> None:
        self._folder = folder
        self._quantizers = quantizers
        self._samples = tiny.samples(folder / "samples.jsonl")

    def verdict(self, family: Family, column: str) -> str:
        """Return what a cell says: works, or refused by the plan or the quantizer, with the reason."""
        model, out = self.model(family), self.output(family, column)
        shutil.rmtree(out, ignore_errors=True)
        try:
            chat = plan_of(model, column)
        except WrongRequestError as refused:
            return f"refused: {'; '.join(_reason(problem.found, problem.next_step) for problem in refused.problems)}"
        method = column.removeprefix("trt ")
        job = QuantizeJob(
            method=method,
            model=model,
            out=out,
            group_size=chat.group_size,
            symmetric=chat.symmetric,
            kept_in_float=chat.kept_in_float,
            samples=self._samples if chat.calibration else None,
            sequence_length=64,
            seed=0,
            device="cpu",
            dtype="bfloat16" if column in MODELOPT else "auto",
            backend="pytorch" if column in MODELOPT else "engine",
        )
        quantize = trt.quantize if column in MODELOPT else vllm.quantize
        try:
            with mock.patch("pipeline.quantize.worker.run_worker", self._quantizers.run_worker):
                quantize(job, python=None, progress=PlainProgress(io.StringIO()))
        except StageError as failed:
            shutil.rmtree(out, ignore_errors=True)
            return f"fails: {_short(str(failed))}"
        return WORKS

    def served(self, family: Family, engines: Forks) -> str:
        """Return whether vLLM's build for CPUs answers a turn from what INT8 wrote."""
        folder = self.output(family, SERVED_METHOD)
        if not folder.exists() and self.verdict(family, SERVED_METHOD) != WORKS:
            return NOTHING
        code, log = engines.call("tests.harness.models.serving", str(folder))
        return ANSWERS if code == 0 else f"not loaded: {cause(log)}"

    def model(self, family: Family) -> Path:
        """Return the folder of a family's model, made when it is first needed."""
        folder = self._folder / "models" / family.slug
        if not (folder / "config.json").exists():
            family.write(folder)
        return folder

    def output(self, family: Family, column: str) -> Path:
        """Return the folder that a cell's quantizer writes."""
        return self._folder / "out" / f"{family.slug}.{column.replace(' ', '-')}"


def plan_of(model: Path, column: str) -> ChatPlan:
    """Plan a model in the lane of a column.

    Raises:
        WrongRequestError: the plan refuses it.
    """
    # The machine and its environments stay the same, and asking them takes longer than planning.
    with (
        mock.patch("pipeline.plan.hardware._packages_of", packages_of),
        mock.patch.object(machine, "describe", described if column in COMPRESSED else lambda: H200),
    ):
        return _plan(model, column)


def _plan(model: Path, column: str) -> ChatPlan:
    environment = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "HF_HUB_OFFLINE"}}
    environment |= {"AWQ_CALIB_DATASET": "embedded", "QUANTIZE_PYTHON": str(QUANTIZER)}
    if column in COMPRESSED:
        request = BuildRequest(chat=str(model), lanes=("cpu",), method=column, allow_emulated=True)
        made = prepare(request, model.parent / "cache", environment).plan.chat
    else:
        # int8_sq runs as a compiled engine alone; ModelOpt's recipe and its export are the same.
        every = replace(lanes.TRT_PYTORCH, methods=trt.FORMATS)
        environment |= {"TRT_BACKEND": "pytorch", "TRT_MAX_BATCH_SIZE": "1", "TRT_DTYPE": "bfloat16"}
        with mock.patch("pipeline.lanes.table.TRT_PYTORCH", every):
            request = BuildRequest(chat=str(model), lanes=("trt",), method=column.removeprefix("trt "))
            made = prepare(request, model.parent / "cache", environment).plan.chat
    assert made
    return made


def cause(log: str) -> str:
    """Return the line of an engine's log that tells why it ended: the first exception that is not a consequence."""
    if died := re.search(r"Worker proc \S+ died unexpectedly \((exit code: -?\d+)\)", log):
        return f"vLLM's worker died, {died[1]}"
    # Not the line of the source that raises it.
    found = re.findall(r"\b([A-Z]\w*(?:Error|Exception)(?:: [^\n]*|$))", log, re.MULTILINE)
    consequences = ("EngineDeadError", "Engine core initialization failed", "cancelled", "Engine core proc")
    causes = [line for line in found if not any(word in line for word in consequences)]
    # What follows in brackets are its figures.
    return _short(causes[0].partition(" (")[0] if causes else tail(log))


def _reason(found: str, way_out: str | None) -> str:
    # Of a combination that does not work, the way out tells why, for every family in the same words.
    return _short(re.sub(r"^\w+ with \w+; ", "", f"{found}; {way_out}" if way_out else found))


def _short(text: str) -> str:
    text = re.sub(r" ?\(?/(?:tmp|work|root)/[^\s;:,]*", "", text)
    text = text.rpartition("StageError: stage quantize failed: ")[2].removeprefix("stage quantize failed: ")
    text = re.sub(r"\s+", " ", text.replace("|", "/")).strip()
    return text if len(text) <= 160 else f"{text[:157]}…"


def table(results: Results) -> str:
    """Return the table, with each reason once, as a note."""
    notes: dict[str, int] = {}

    def cell(text: str) -> str:
        kind, _, reason = text.partition(": ")
        return f"{kind} [{notes.setdefault(reason, len(notes) + 1)}]" if reason else kind

    columns = (*METHODS, SERVED)
    heads = ["family", *COMPRESSED, *MODELOPT, "INT8, served on a CPU"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for family in FAMILIES:
        row = results.get(family.slug, {})
        lines.append(f"| {' | '.join([family.name, *(cell(row.get(column, NOT_TRIED)) for column in columns)])} |")
    lines += ["", *(f"{number}. {reason}" for reason, number in notes.items())]
    return "\n".join(lines).rstrip() + "\n"


def read_table(document: str) -> Results:
    """Return the results that a document's table tells."""
    section = document.partition(BEGIN)[2].partition(END)[0]
    notes = dict(re.findall(r"^(\d+)\. (.*)$", section, re.MULTILINE))
    slugs = {family.name: family.slug for family in FAMILIES}
    results: Results = {}
    for line in section.splitlines():
        name, *cells = [part.strip() for part in line.strip().strip("|").split("|")]
        if name in slugs:
            results[slugs[name]] = {
                column: re.sub(r" \[(\d+)\]$", lambda note: f": {notes[note[1]]}", text)
                for column, text in zip((*METHODS, SERVED), cells, strict=True)
            }
    return results


def write(results: Results) -> None:
    """Write the table into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table(results)}\n{END}{after}", encoding="utf-8")


@contextmanager
def quantizers() -> Iterator[Forks]:
    """A quantizer environment that has its libraries loaded."""
    with Forks(QUANTIZER, *QUANTIZER_LIBRARIES) as forks:
        yield forks


@contextmanager
def engines() -> Iterator[Forks]:
    """The engine's environment, with vLLM loaded."""
    with Forks(ENGINE, *ENGINE_LIBRARIES) as forks:
        yield forks


def run(families: Sequence[str], methods: Sequence[str], *, serve: bool, kept: Path) -> Results:
    """Fill the cells that are not known yet; the results are kept as they come."""
    results: Results = json.loads(kept.read_text()) if kept.exists() else {}
    place = kept.parent / "models"
    place.mkdir(parents=True, exist_ok=True)

    def known(family: str, column: str, verdict: str) -> None:
        results.setdefault(family, {})[column] = verdict
        kept.write_text(json.dumps(results, indent=1, ensure_ascii=False))
        print(f"{family}, {column}: {verdict}", flush=True)

    with quantizers() as forks:
        matrix = Matrix(place, forks)
        for slug in families:
            for column in methods:
                if column not in results.get(slug, {}):
                    known(slug, column, matrix.verdict(BY_SLUG[slug], column))
        if serve:
            with engines() as loaded:
                for slug in families:
                    if SERVED not in results.get(slug, {}):
                        known(slug, SERVED, matrix.served(BY_SLUG[slug], loaded))
    return results


def main() -> None:
    """Run what the command line asks for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--families", nargs="*", default=[*BY_SLUG], choices=[*BY_SLUG])
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=METHODS)
    parser.add_argument("--serve", action="store_true", help="let vLLM's CPU build answer from what INT8 wrote")
    parser.add_argument("--results", type=Path, help="goes on from there; without it, all is done anew")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="yap-models-") as place:
        kept: Path = told.results or Path(place, "results.json")
        write(run(told.families, told.methods, serve=told.serve, kept=kept))


if __name__ == "__main__":
    main()
