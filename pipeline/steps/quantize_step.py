"""The step that quantizes: the chat model as it came, and the one that is built from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import source
from pipeline.checkpoint.tensors import INDEX_SUFFIX
from pipeline.plan import BuildPlan, CalibrationPlan, ChatPlan
from pipeline.plan.hardware import Hardware
from pipeline.quantize import QuantizeJob, calibration
from pipeline.stages.recipes import recipe_of
from pipeline.stages.stage import StageError
from pipeline.steps.lane_modules import QUANTIZERS
from pipeline.steps.stage_runner import FetchedModel, StageRunner, tokenizing
from runtime.artifact import Calibration, Quantization

# Files that a tokenizer may read, and those with such names that none does.
TOKENIZER_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".spm", ".vocab", ".bpe")
NO_TOKENIZER = (INDEX_SUFFIX, "generation_config.json", "LICENSE.txt")


@dataclass(frozen=True, slots=True)
class QuantizeStep:
    """Quantizes the chat model of a plan, with the quantizer that was found here.

    Attributes:
        plan: what is built.
        hardware: this machine, with its quantizer.
        runner: runs the stages.
    """

    plan: BuildPlan
    hardware: Hardware
    runner: StageRunner

    def quantize(self, chat: ChatPlan) -> tuple[FetchedModel, FetchedModel, Quantization]:
        """Fetch the chat model and quantize it, unless it came quantized.

        Returns:
            the model as it came, the model to build from, and what was done.

        Raises:
            StageError: a stage failed.
        """
        base = self.runner.chat_source(chat.source)
        step = self.runner.progress.step
        if found := chat.prequantized:
            step(f"quantize: nothing to do, the source comes as {found.scheme}")
            came = Quantization(
                method=found.method,
                scheme=found.scheme,
                group_size=found.group_size,
                symmetric=found.symmetric,
                kept_in_float=found.kept,
                prequantized=True,
            )
            model = self.runner.model(source.checkpoint_in(base.folder)) if self.plan.lane.compiles else base
            return base, model, came
        if prebuilt := chat.prebuilt:
            step(f"quantize: nothing to do, {prebuilt} holds {chat.scheme}")
            made = Quantization(method=chat.method, scheme=chat.scheme, group_size=chat.group_size)
            return base, self.runner.model(prebuilt), made
        if chat.method == "none":
            step("quantize: nothing to do, the weights stay as they are")
            return base, base, Quantization(method="none", scheme=chat.scheme)
        python = self._quantizer_python()
        samples, calibrated = None, None
        if chat.calibration:
            samples, calibrated = self._calibrate(chat.calibration, base, python)
        job = QuantizeJob(
            method=chat.method,
            model=base.folder,
            out=Path(),
            group_size=chat.group_size,
            symmetric=chat.symmetric,
            kept_in_float=chat.kept_in_float,
            samples=samples,
            sequence_length=calibrated.sequence_length if calibrated else 0,
            seed=self.plan.seed,
            device=self.plan.device,
            dtype=chat.dtype,
            tensor_parallel=chat.limits.tensor_parallel_size,
            backend=self.plan.lane.backend,
        )
        model, quantization = self._run_quantizer(job, base, calibrated, python)
        return base, model, quantization

    def _quantizer_python(self) -> Path:
        if self.hardware.quantizer is None:
            raise StageError("quantize", "expected an environment with the quantizer, found none")
        return self.hardware.quantizer.python

    def _calibrate(self, plan: CalibrationPlan, base: FetchedModel, python: Path) -> tuple[Path, Calibration]:
        seed = self.plan.seed
        inputs = {
            "dataset": calibration.identity_of(plan.dataset),
            "samples": plan.samples,
            "sequence_length": plan.sequence_length,
            "seed": seed,
            "tokenizer": tokenizer_hash(base.folder),
            "packages": tokenizing(),
            "reach": calibration.reach(base.folder, plan.sequence_length),
            "code": recipe_of("calibration"),
        }

        def work(out: Path) -> Mapping[str, Any]:
            made = calibration.calibrate(
                plan, base.folder, out, seed=seed, parquet_python=python, progress=self.runner.progress
            )
            return made.model_dump(mode="json")

        done = self.runner.stage("calibration", inputs, work)
        return done.output / calibration.SAMPLES_NAME, Calibration.model_validate_json(json.dumps(done.result))

    def _run_quantizer(
        self, job: QuantizeJob, base: FetchedModel, calibrated: Calibration | None, python: Path
    ) -> tuple[FetchedModel, Quantization]:
        settled = {"model", "out", "samples", "sequence_length"}
        inputs = {name: value for name, value in asdict(job).items() if name not in settled}
        inputs |= {
            "source": base.content,
            "kept_in_float": list(job.kept_in_float),
            "calibration": calibrated.digest if calibrated else None,
            "packages": self.hardware.quantizer.packages if self.hardware.quantizer else {},
            "code": recipe_of("quantize", self.plan.engine),
        }

        def work(out: Path) -> Mapping[str, Any]:
            made = QUANTIZERS[self.plan.engine](replace(job, out=out), python=python, progress=self.runner.progress)
            return made.model_copy(update={"calibration": calibrated}).model_dump(mode="json")

        done = self.runner.stage("quantize", inputs, work)
        return self.runner.model(done.output), Quantization.model_validate_json(json.dumps(done.result))


def tokenizer_hash(folder: Path) -> str:
    """Return a SHA-256 over the files that may decide how text becomes tokens.

    Which of them a tokenizer reads differs from class to class. So all are taken that any could read, the model's
    config among them, which names the class where nothing else does. One too many costs a calibration, and no more.
    """
    hasher = hashlib.sha256()
    templates = sorted(folder.glob("additional_chat_templates/*.jinja"))
    for path in (*sorted(folder.iterdir()), *templates):
        if path.is_file() and path.name.endswith(TOKENIZER_SUFFIXES) and not path.name.endswith(NO_TOKENIZER):
            content = path.read_bytes()
            hasher.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return hasher.hexdigest()
