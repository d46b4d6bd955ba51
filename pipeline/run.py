"""Runs a plan: the stages in their order, and the finished artifact at its place.

source → calibration → quantize → tune → tool → build → reference → validate → finish. Each is done once for its inputs
(`pipeline/stages/stage.py`); only `finish` touches the artifact's place, by a rename, after every gate has passed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.build import awq
from pipeline.build.assemble import assemble
from pipeline.lanes.gate_specs import CLASSIFIERS
from pipeline.lanes.gates import describe_failure, failed_gates
from pipeline.plan import ChatPlan
from pipeline.plan.prepare import Prepared
from pipeline.progress import Progress
from pipeline.publish import describe
from pipeline.source.utterance_file import NO_UTTERANCES
from pipeline.stages import install
from pipeline.stages.recipes import recipe_of
from pipeline.stages.stage import StageError, remove_all_leftovers
from pipeline.steps.fall_back import PLAIN, FallBack
from pipeline.steps.lane_modules import BUILDERS
from pipeline.steps.quantize_step import QuantizeStep
from pipeline.steps.stage_runner import FetchedModel, StageRunner, tokenizing
from pipeline.steps.tune_step import tune
from pipeline.validate.validation import validate
from runtime import artifact
from runtime.artifact import (
    ArtifactError,
    BuildMetadata,
    ChatModel,
    Gate,
    Quantization,
    ToolModel,
    TunedOptions,
    Validation,
    hashes,
    verify,
)


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


def classifier_alone(error: Exception) -> bool:
    """Return whether nothing failed but gates of the classifier."""
    return isinstance(error, GateError) and error.classifier_alone


class Run:
    """One run of a plan, on one cache of stages.

    Attributes:
        plan: what is made.
        hardware: the machine, as it was planned on.
        cache: folder of finished stages.
        progress: told of each step.
        runner: runs the stages.
    """

    def __init__(self, prepared: Prepared, progress: Progress, *, force: bool = False) -> None:
        self.plan, self.hardware, self.cache = prepared.plan, prepared.hardware, prepared.cache
        self.progress = progress
        self.runner = StageRunner(prepared.cache, prepared.hardware.machine, progress, force)
        self._fall_back = FallBack(self.runner)  # does without tuned options that a stage refuses
        self._quantized: tuple[FetchedModel, FetchedModel, Quantization] | None = None  # once is enough
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
        return QuantizeStep(self.plan, self.hardware, self.runner).quantize(chat)

    def build(self) -> tuple[Path, BuildMetadata]:
        """Run the stages up to a complete artifact that is not validated yet; it lies in the cache.

        Raises:
            StageError: a stage failed, and not for the engine options that were tuned.
        """
        return self._fall_back.attempt(self._build)

    def _build(self) -> tuple[Path, BuildMetadata]:
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
            self._quantized = base, model, quantization = self._quantized or self.quantize(plan.chat)
            models["chat"] = model.folder
            told = plan
            if tuned := self._fall_back.left(tune(plan, plan.chat, model, self.runner)):
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

        done = self._fall_back.stage("build", inputs, work, tuned.choices if tuned else PLAIN)
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
            StageError: a stage failed, and not for the engine options that were tuned.
            GateError: a gate did, in the same way.
        """
        return self._fall_back.attempt(self._validate)

    def _validate(self) -> tuple[Path, BuildMetadata]:
        folder, metadata = self._build()
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
        tuned = metadata.chat.engine_options if metadata.chat else None
        options = tuned.choices if tuned else PLAIN
        done = self._fall_back.stage("validate", inputs, work, options, classifier_alone)
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

    def _records(self) -> tuple[artifact.StageRecord, ...]:
        return tuple(done.record for done in self.runner.finished)


def proven_as(place: Path, metadata: BuildMetadata) -> bool:
    """Whether an artifact lies there that may be served, with the same files and the same said about them."""
    try:
        there = verify.check_proven(place)
    except ArtifactError:
        return False
    ignored = {"created_at", "platform", "stages", "validation"}
    return bool(there.model_dump(exclude=ignored) == metadata.model_dump(exclude=ignored))
