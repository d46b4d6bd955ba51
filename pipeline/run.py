"""Runs a plan: the stages in their order, and the finished artifact at its place.

source → calibration → quantize → tune → tool → build → reference → validate → finish. Each is done once for its inputs
(`pipeline/stages/stage.py`); only `finish` touches the artifact's place, by a rename, after every gate has passed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pipeline import source
from pipeline.build import awq
from pipeline.build.assemble import assemble
from pipeline.lanes import STYLES
from pipeline.lanes.gate_specs import CLASSIFIERS
from pipeline.lanes.gates import describe_failure, failed_gates
from pipeline.plan import BuildPlan, CalibrationPlan, ChatPlan
from pipeline.plan.prepare import Prepared
from pipeline.problem import LONGEST_FOUND, printable
from pipeline.progress import Progress
from pipeline.publish import describe
from pipeline.quantize import QuantizeJob, calibration
from pipeline.source.model_files import TOKENIZER_FILES
from pipeline.source.utterance_file import NO_UTTERANCES
from pipeline.stage_runner import FetchedModel, StageRunner, tokenizing
from pipeline.stages import install, recipes
from pipeline.stages.recipes import recipe_of
from pipeline.stages.stage import StageError, remove_all_leftovers
from pipeline.tuning.choosing import Goal
from pipeline.tuning.trials import TuningRequest, tune_here
from pipeline.validate.validation import validate
from runtime import artifact
from runtime.artifact import (
    ArtifactError,
    BuildMetadata,
    Calibration,
    ChatModel,
    Gate,
    Quantization,
    ToolModel,
    TunedOptions,
    Validation,
    hashes,
    verify,
)


class Quantizer(Protocol):
    """What a lane's module in `quantize/` offers as `quantize`."""

    def __call__(self, job: QuantizeJob, *, python: Path | None, progress: Progress) -> Quantization:
        """Write the quantized model to `job.out`."""


class Builder(Protocol):
    """What a lane's module in `build/` offers."""

    def __call__(self, model_dir: Path, out: Path, *, source: Path, plan: BuildPlan, progress: Progress) -> None:
        """Fill `out` with what the runtime loads."""


def _offered(module: str, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


# By engine. The names stand in the lanes' records, so that a new lane changes nothing here.
QUANTIZERS: dict[str, Quantizer] = {engine: _offered(name, "quantize") for engine, name in recipes.QUANTIZERS.items()}
BUILDERS: dict[str, Builder] = {lane.engine: _offered(recipes.BUILDERS[lane.engine], lane.builder) for lane in STYLES}


class GateError(Exception):
    """The artifact did not pass its gates.

    Attributes:
        method: how the chat model was quantized.
        gates: those that failed.
    """

    def __init__(self, method: str, gates: Sequence[Gate]) -> None:
        self.method, self.gates = method, tuple(gates)
        super().__init__(f"{method}: " + "; ".join(self.failures))

    @property
    def failures(self) -> list[str]:
        """One line for each failed gate, with by how much."""
        return [describe_failure(gate) for gate in self.gates]

    @property
    def classifier_alone(self) -> bool:
        """Whether nothing else failed, so that another method would not help."""
        return all(gate.name.partition(":")[0] in CLASSIFIERS for gate in self.gates)


class Run:
    """One run of a plan, on one cache of stages."""

    def __init__(self, prepared: Prepared, progress: Progress, *, force: bool = False) -> None:
        self.plan, self.hardware, self.cache = prepared.plan, prepared.hardware, prepared.cache
        self.progress = progress
        self.runner = StageRunner(prepared.cache, prepared.hardware.machine, progress, force)
        remove_all_leftovers(self.cache)
        # First of all: a run that fails on its way must not keep back what a killed one had moved aside.
        install.recover(self.plan.out)

    def quantize(self, chat: ChatPlan) -> tuple[FetchedModel, FetchedModel, Quantization]:
        """Fetch the chat model and quantize it, unless it came quantized.

        Returns:
            the model as it came, the model to build from, and what was done.

        Raises:
            StageError: a stage failed.
        """
        base = self.runner.chat_source(chat.source)
        if found := chat.prequantized:
            self.progress.step(f"quantize: nothing to do, the source comes as {found.scheme}")
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
            self.progress.step(f"quantize: nothing to do, {prebuilt} holds {chat.scheme}")
            made = Quantization(method=chat.method, scheme=chat.scheme, group_size=chat.group_size)
            return base, self.runner.model(prebuilt), made
        if chat.method == "none":
            self.progress.step("quantize: nothing to do, the weights stay as they are")
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

    def build(self) -> tuple[Path, BuildMetadata]:
        """Run the stages up to a complete artifact that is not validated yet; it lies in the cache.

        Raises:
            StageError: a stage failed.
        """
        plan = self.plan
        inputs: dict[str, Any] = {
            "lane": plan.lane.name,
            "eager": plan.eager,
            "code": recipe_of("build", plan.engine if plan.chat else None),
        }
        chat: ChatModel | None = None
        tool: ToolModel | None = None
        tuned: TunedOptions | None = None
        models: dict[str, Path] = {}
        build: Callable[[Path, Path], None] | None = None
        if plan.chat:
            base, model, quantization = self.quantize(plan.chat)
            models["chat"] = model.folder
            told = plan
            if tuned := self._tune(plan.chat, model):
                told = replace(plan, choices=tuned.choices)
                inputs["choices"] = tuned.choices.model_dump(mode="json")
            build = partial(BUILDERS[plan.engine], source=base.folder, plan=told, progress=self.progress)
            inputs |= {"chat": model.content, "source": base.content, "engine": plan.engine}
            chat = describe.chat_model(plan.chat, base.content, quantization)
            if not plan.eager:
                # What is compiled ahead of time depends on all of these.
                inputs |= {"limits": plan.chat.limits.model_dump(), "machine": self.runner.engine_identity()}
                inputs |= {"method": plan.chat.method, "dtype": plan.chat.dtype}
                # The folder of a compiled engine is named by it.
                inputs["label"] = plan.chat.trt.label if plan.chat.trt else None
        if plan.tool:
            classifier, report = self.runner.tool_source(plan.tool.source)
            models["tool"], inputs["tool"] = classifier.folder, classifier.content
            tool = describe.tool_model(plan.tool, classifier.content, report)

        described = awq.describe_awq(chat, plan.engine) if chat else None
        if described:
            inputs["awq"] = described

        def work(out: Path) -> Mapping[str, Any]:
            return assemble(models, out, build=build, described=described, progress=self.progress)

        done = self.runner.stage("build", inputs, work)
        self.progress.step("hashing the artifact")
        files = hashes.hash_folder(done.output)
        if changed := next((entry.path for entry in files if done.hashes.get(entry.path) != entry.sha256), None):
            raise StageError("build", "a file changed since it was made", changed, "run the same command again")
        if chat:
            chat = chat.model_copy(update={**done.result, "engine_options": tuned})
        metadata = BuildMetadata(
            lane=plan.lane.name,
            engine=plan.engine,
            created_at=describe.now(),
            chat=chat,
            tool=tool,
            platform=describe.platform(self.hardware),
            stages=self._records(),
            files=files,
            digest=hashes.digest_of(files),
        )
        return done.output, metadata

    def validate(self) -> tuple[Path, BuildMetadata]:
        """Run the stages up to an artifact that passed its gates; it lies in the cache.

        Raises:
            StageError: a stage failed.
            GateError: a gate did.
        """
        folder, metadata = self.build()
        chat, thresholds = self.plan.chat, self.plan.thresholds
        reference: Path | None = None
        if chat and not chat.prequantized:
            base = self.runner.chat_source(chat.source)
            reference = self.runner.reference(base, self.plan.lane, chat.limits, dtype=chat.dtype)

        utterances = self.plan.tool.utterances if self.plan.tool else NO_UTTERANCES

        # What the works hand over stands in the inputs; what they do, in the modules that the recipes name.
        def work(_: Path) -> Mapping[str, Any]:
            validation = validate(
                folder,
                metadata,
                reference=reference,
                thresholds=thresholds,
                progress=self.progress,
                utterances=utterances,
            )
            if failed := failed_gates(validation):
                raise GateError(chat.method if chat else "tool", failed)
            return validation.model_dump(mode="json")

        inputs = {
            "digest": metadata.digest,
            "lane": metadata.lane,
            "engine": metadata.engine,
            # The digest is over the files; how they are loaded and asked stands in the metadata.
            "chat": metadata.chat.model_dump(mode="json") if metadata.chat else None,
            "tool": metadata.tool.model_dump(mode="json") if metadata.tool else None,
            "utterances": utterances.sha256,
            "reference": hashes.sha256_of(reference) if reference else None,
            "thresholds": {spec.name: str(bound) for spec, bound in thresholds.items()},
            "machine": self.runner.engine_identity(),
            "packages": tokenizing(),
            "code": recipe_of("validate", self.plan.engine if chat else None),
        }
        done = self.runner.stage("validate", inputs, work)
        validation = Validation.model_validate_json(json.dumps(done.result))
        return folder, metadata.model_copy(update={"validation": validation, "stages": self._records()})

    def finish(self, folder: Path, metadata: BuildMetadata) -> Path:
        """Install the artifact at its place, whole or not at all.

        One that is not proven replaces none that is and holds the same: its proof would be lost for nothing.
        """
        if metadata.validation is None and proven_as(self.plan.out, metadata):
            self.progress.step(f"finish: {self.plan.out} holds the same and is proven; it stays as it is")
            return self.plan.out
        self.progress.step(f"finish: the artifact goes to {self.plan.out}")
        return install.install_artifact(folder, self.plan.out, metadata, self.cache, self.progress.step)

    def _tune(self, chat: ChatPlan, model: FetchedModel) -> TunedOptions | None:
        """Try the table of engine options on this GPU; none where nothing is tuned.

        What was measured is kept for the same engine, driver and GPU, and for nothing else.
        """
        goal = self.plan.tune
        if goal == "off":
            return None
        try:
            return self._tuned(goal, chat, model)
        except Exception as error:  # noqa: BLE001 - whatever it is: the plain options serve too
            # Where these do not either, the stages that follow say so.
            why = str(error) if isinstance(error, StageError) else f"{type(error).__name__}: {error}"
            told = printable(why, LONGEST_FOUND)
            self.progress.step(f"tune: {told}; nothing is tuned, and the engine's plain options are built")
            return None

    def _tuned(self, goal: Goal, chat: ChatPlan, model: FetchedModel) -> TunedOptions:
        request = TuningRequest(
            goal=goal,
            folder=model.folder,
            engine=self.plan.engine,
            limits=chat.limits,
            method=chat.method,
            kv_fp8=self.plan.tune_kv_fp8,
            minutes=self.plan.tune_minutes,
        )
        inputs = {
            "model": model.content,
            "goal": goal,
            "engine": request.engine,
            "limits": chat.limits.model_dump(),
            "method": chat.method,
            "kv_fp8": request.kv_fp8,
            "minutes": request.minutes,
            "machine": self.runner.engine_identity(),
            "packages": tokenizing(),
            "code": recipe_of("tune", self.plan.engine),
        }

        def work(out: Path) -> Mapping[str, Any]:
            with tempfile.TemporaryDirectory(prefix="yap-tune-", dir=out.parent) as scratch:
                tuned = tune_here(request, self.runner.machine, Path(scratch), self.progress)
            return tuned.model_dump(mode="json")

        done = self.runner.stage("tune", inputs, work)
        return TunedOptions.model_validate_json(json.dumps(done.result))

    def _records(self) -> tuple[artifact.StageRecord, ...]:
        return tuple(done.record for done in self.runner.finished)

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
                plan, base.folder, out, seed=seed, parquet_python=python, progress=self.progress
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
            made = QUANTIZERS[self.plan.engine](replace(job, out=out), python=python, progress=self.progress)
            return made.model_copy(update={"calibration": calibrated}).model_dump(mode="json")

        done = self.runner.stage("quantize", inputs, work)
        return self.runner.model(done.output), Quantization.model_validate_json(json.dumps(done.result))


def proven_as(place: Path, metadata: BuildMetadata) -> bool:
    """Whether an artifact lies there that may be served, with the same files and the same said about them."""
    try:
        there = verify.check_proven(place)
    except ArtifactError:
        return False
    ignored = {"created_at", "platform", "stages", "validation"}
    return bool(there.model_dump(exclude=ignored) == metadata.model_dump(exclude=ignored))


def tokenizer_hash(folder: Path) -> str:
    """Return a SHA-256 over the files that decide how text becomes tokens."""
    prefixes = ("tokenizer", "chat_template", "special_tokens")
    hasher = hashlib.sha256()
    templates = sorted(folder.glob("additional_chat_templates/*.jinja"))
    for path in (*sorted(folder.iterdir()), *templates):
        if path in templates or path.name in TOKENIZER_FILES or path.name.startswith(prefixes):
            hasher.update(path.name.encode() + b"\0" + path.read_bytes())
    return hasher.hexdigest()
