"""Validation of an artifact that exists: built without it, moved to another machine, or held to other bounds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline import settings, source
from pipeline.checkpoint.layers import layer_table
from pipeline.lanes import lane_of_artifact
from pipeline.lanes.gate_specs import BY_NAME
from pipeline.lanes.gates import Thresholds, default_thresholds, inapplicable_bounds, missing_bounds
from pipeline.plan import hardware
from pipeline.plan.prepare import cache_place
from pipeline.problem import Problem, WrongRequestError
from pipeline.progress import Progress
from pipeline.publish import describe
from pipeline.settings import PipelineSettings
from pipeline.source import EMBEDDED, SourceFacts
from pipeline.source.tool_labels import LabelsError, labels_of
from pipeline.source.utterance_file import (
    NO_UTTERANCES,
    UtterancesError,
    UtteranceSet,
    read_utterances,
    utterances_for,
)
from pipeline.stages import install
from pipeline.stages.place import write_problem
from pipeline.stages.stage import StageError
from pipeline.steps.stage_runner import StageRunner
from pipeline.validate.validation import candidate_of, validate
from runtime import artifact
from runtime.artifact import ArtifactError, BuildMetadata, ChatModel
from runtime.artifact.checks.sharing import unlike
from runtime.deployment.classifier import is_multi_label
from runtime.host.machine import Gpu

QUANTIZERS = frozenset({"llmcompressor", "nvidia-modelopt"})


def revalidate(
    folder: Path,
    reference: str | None,
    bounds: Thresholds,
    cache: Path | None,
    progress: Progress,
    tool_utterances: Path | None = None,
) -> BuildMetadata:
    """Measure an artifact here, and write the figures into its metadata whether they pass or not.

    Args:
        folder: the artifact.
        reference: the float model; none takes the source that the metadata names.
        bounds: those that replace the defaults.
        cache: folder of finished stages; none takes the environment's.
        tool_utterances: file of labelled utterances to measure the classifier on; none takes the environment's.

    Raises:
        WrongRequestError: the lane does not fit, or the float model is not the one that was quantized.
        ArtifactError: the artifact cannot be read, or a file changed.
        StageError: the engine failed.
    """
    loaded = settings.load(os.environ)
    where, wrong = cache_place(cache, loaded.settings, os.environ)
    if problems := [*loaded.problems, *wrong]:
        raise WrongRequestError(problems)
    install.recover(folder)
    found = artifact.read(folder)
    if problem := write_problem(folder):
        raise WrongRequestError([problem])
    metadata = _with_thought(found, loaded.settings, progress)
    lane = lane_of_artifact(metadata.lane, metadata.engine)
    here = hardware.describe(where, loaded.settings.quantize_python, lane.quantizer)
    if lane.on_gpu and not here.machine.gpus:
        expected = f"a GPU, for the {lane.name} lane"
        raise WrongRequestError([Problem("ARTIFACT", expected, "none", "run it where it will serve")])
    if lane.on_gpu and metadata.chat is not None and (few := too_few(metadata.chat, here.machine.gpus)):
        raise WrongRequestError([few])
    runner = StageRunner(where, here.machine, progress)
    chat = metadata.chat
    scores: Path | None = None
    compared = chat is not None and not chat.quantization.prequantized
    utterances = _utterances(folder, metadata, tool_utterances, loaded.settings)
    if inapplicable := inapplicable_bounds(candidate_of(metadata, compared=compared, utterances=utterances), bounds):
        raise WrongRequestError(inapplicable)
    parameters = 0
    if chat and compared:
        model = runner.chat_source(_reference(chat, reference))
        if model.content != chat.source.content_sha256:
            expected, other = chat.source.content_sha256[:12], model.content[:12]
            name = reference or chat.source.repo
            raise WrongRequestError(
                [Problem("--reference", f"the model with content {expected}", f"{other} in {name}")]
            )
        facts = source.read_facts(str(model.folder), "CHAT_MODEL")
        parameters = layer_table(facts.config, facts.tensors).parameters
        scores = runner.reference(model, lane, chat.limits, dtype=chat.dtype)
    candidate = candidate_of(metadata, compared=compared, parameters=parameters, utterances=utterances)
    thresholds = {**default_thresholds(candidate), **bounds}
    if unbounded := missing_bounds(thresholds, candidate):
        method = chat.quantization.method if chat else "none"
        options = [(name, BY_NAME[name].option) for name in unbounded]
        names = ", ".join(option.name if option else name for name, option in options)
        raise WrongRequestError([Problem(names, f"a bound, which the method {method} has none of", "none", "name it")])
    validation = validate(
        folder,
        metadata,
        reference=scores,
        thresholds=thresholds,
        progress=progress,
        utterances=utterances,
        with_code=loaded.settings.artifact_trust == "unsigned",
    )
    # What quantized it stays what it was; what proves it is what is here.
    quantizers = {name: version for name, version in metadata.platform.packages.items() if name in QUANTIZERS}
    platform = describe.platform(here)
    platform = platform.model_copy(update={"packages": quantizers | here.machine.packages})
    proven = metadata.model_copy(update={"validation": validation, "platform": platform})
    with install.held(folder, "validate", progress.step):
        # Another run may have put another artifact there while this one was measured. Of two proofs the later stays.
        proof = {"validation", "platform"}
        if artifact.read(folder).model_dump(exclude=proof) != found.model_dump(exclude=proof):
            again = "run the same command again"
            raise StageError("validate", "the artifact changed while it was measured", folder, again)
        proven.write(folder)
    return proven


def too_few(chat: ChatModel, gpus: Sequence[Gpu]) -> Problem | None:
    """Say that the GPUs here cannot share the model as they will; none where they can."""
    needed, next_step = chat.limits.gpus, "run it where it will serve"
    if len(gpus) < needed:
        return Problem("ARTIFACT", f"{needed} GPUs, which share the model", str(len(gpus)), next_step)
    if odd := unlike(gpus[:needed]):
        return Problem("ARTIFACT", f"{needed} GPUs that are alike", odd, "choose others with CUDA_VISIBLE_DEVICES")
    return None


def _with_thought(metadata: BuildMetadata, values: PipelineSettings, progress: Progress) -> BuildMetadata:
    """Return the metadata with the operator's budget for thought, where the environment names one."""
    chat, asked = metadata.chat, values.thinking_max_tokens
    if chat is None or "thinking_max_tokens" not in values.model_fields_set or chat.thinking_max_tokens == asked:
        return metadata
    progress.step(f"thought may take {asked} tokens (THINKING_MAX_TOKENS), not {chat.thinking_max_tokens} as before")
    if asked >= chat.limits.max_output_len:
        expected = f"less than {chat.limits.max_output_len}, the tokens that the artifact gives out at most"
        raise WrongRequestError([Problem("THINKING_MAX_TOKENS", expected, str(asked))])
    return metadata.model_copy(update={"chat": chat.model_copy(update={"thinking_max_tokens": asked})})


def _utterances(folder: Path, metadata: BuildMetadata, named: Path | None, values: PipelineSettings) -> UtteranceSet:
    """Return the user's labelled utterances, held against the artifact's classifier."""
    path, where = (values.tool_utterances, "TOOL_UTTERANCES") if named is None else (named, "--tool-utterances")
    if path is None:
        return NO_UTTERANCES
    tool = metadata.tool
    if tool is None:
        if named is None:
            return NO_UTTERANCES
        raise WrongRequestError([Problem(where, "an artifact with a classifier", "none", "leave it out")])
    try:
        config = json.loads((folder / tool.path / "config.json").read_bytes())
        labels, independent = labels_of(config), is_multi_label(config)
        return utterances_for(read_utterances(path), labels, tool.served_tools, independent=independent)
    except (UtterancesError, LabelsError) as error:
        expected = f"labels of {', '.join(entry.name for entry in tool.served_tools)}, or of none of them"
        raise WrongRequestError([Problem(where, expected, str(error), f"correct {path}")]) from error
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{folder / tool.path / 'config.json'}: expected a classifier's, found {error}") from error


def _reference(chat: ChatModel, named: str | None) -> SourceFacts:
    """Return the float model that an artifact was made from."""
    stated = chat.source
    ref = named
    if ref is None and stated.repo == EMBEDDED:
        ref = EMBEDDED
    elif ref is None and stated.revision:
        ref = f"{stated.repo}@{stated.revision}"
    if ref is None:
        expected = f"the float model {stated.repo}, which is a folder"
        raise WrongRequestError([Problem("--reference", expected, "none", "name the folder with --reference")])
    facts = source.read_facts(ref, "CHAT_MODEL")
    if facts.problems:
        raise WrongRequestError(facts.problems)
    return facts
