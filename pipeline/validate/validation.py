"""Validation of an artifact: the runtime's own engine loads it, and every figure is compared with its bound.

The float model's scores are measured once and kept: `chat_figures.measure_reference` writes them to the file that
`validate` takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pipeline.lanes import LANES, gate_specs, lane_of_artifact
from pipeline.lanes.gate_specs import Candidate, GateSpec
from pipeline.lanes.gates import Figures, Thresholds, gates_by_part, gates_of, is_figure, missing_figures
from pipeline.progress import Progress
from pipeline.source import EMBEDDED
from pipeline.source.utterance_file import NO_UTTERANCES, UtteranceSet, coverage_of
from pipeline.stages.stage import StageError
from pipeline.validate.chat_figures import measure_chat
from pipeline.validate.scores import Scores
from pipeline.validate.tool_accuracy import measure_tools
from runtime.artifact import BuildMetadata, Gate, Validation, hashes
from runtime.artifact.files.proof import ProofError
from runtime.artifact.files.view import ScratchError, View


def validate(
    folder: Path,
    metadata: BuildMetadata,
    *,
    reference: Path | None,
    thresholds: Thresholds,
    progress: Progress,
    utterances: UtteranceSet = NO_UTTERANCES,
    with_code: bool = True,
) -> Validation:
    """Measure an artifact, and compare the figures with the thresholds; the result may hold failed gates.

    Args:
        folder: the artifact, complete but for its validation.
        metadata: what will be written into it.
        reference: what `measure_reference` wrote for the float model; none where there is none, such as for a source
            that came quantized, and then perplexity is reported but not gated.
        utterances: the user's, to measure the classifier's tools on.
        with_code: whether what was compiled ahead of time is run; not where somebody else may have made it.

    Raises:
        ArtifactError: a file is missing, was added, or does not match its hash.
        StageError: the engine did not start, or died; the reference is not one for this model; or the server would
            refuse the model's tokenizer or chat template.
    """
    progress.step("verifying the files")
    try:
        # What is measured is what a server would load, file by file.
        with View(folder, metadata, with_code=with_code) as view:
            hashes.verify_files(folder, metadata, view.take)
            view.proven()  # first: what is not what it should be is not worth the minutes of measuring
            if view.leaves_out_code:
                progress.step("the compile cache is left out: it is code, and ARTIFACT_TRUST is not unsigned")
            found = _measure(view, reference, utterances, progress)
            view.settle()
    except (ScratchError, ProofError) as error:
        raise StageError("validate", str(error)) from error
    except StageError as error:
        home, named = str(view.folder), str(folder)
        what, where = error.what.replace(home, named), error.where.replace(home, named)
        raise StageError(error.stage, what, where, error.next_step) from error
    figures = dict(found.figures)
    parts: list[Gate] = []
    for spec, by_tool in found.by_tool.items():
        if by_tool:
            figures[spec] = min(by_tool.values())
        if metadata.tool and metadata.tool.tools:
            parts += gates_by_part(spec, by_tool, thresholds)
    candidate = candidate_of(metadata, compared=reference is not None, utterances=utterances)
    missing = missing_figures(figures, candidate)
    gates = (*gates_of({spec: value for spec, value in figures.items() if is_figure(value, spec)}, thresholds), *parts)
    if missing and all(gate.passed for gate in gates):
        # A gate without a figure would pass as if there were none.
        raise StageError("validate", f"expected a figure for each gate, found none for {', '.join(missing)}", folder)
    return Validation(
        gates=gates,
        validated_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        digest=metadata.digest,
        not_measured=tuple(f"{gate_specs.TOOL_ACCURACY.name}:{name}" for name in found.missing_tools),
        utterances_sha256=utterances.sha256 if metadata.tool else None,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What was measured.

    Attributes:
        figures: of the whole.
        by_tool: what each tool of the classifier got.
        missing_tools: those that there was nothing to measure on.
    """

    figures: Figures
    by_tool: Mapping[GateSpec, Mapping[str, float]]
    missing_tools: tuple[str, ...]


def _measure(view: View, reference: Path | None, utterances: UtteranceSet, progress: Progress) -> _Found:
    folder, metadata = view.folder, view.metadata
    figures = {gate_specs.FILES: float(len(metadata.files))}
    by_tool: Mapping[GateSpec, Mapping[str, float]] = {}
    missing_tools: tuple[str, ...] = ()
    if metadata.chat is not None:
        reference_scores = Scores.read(reference) if reference is not None else None
        figures |= measure_chat(folder, metadata, reference_scores, progress)
    if (tool := metadata.tool) is not None:
        device = LANES[metadata.lane].device
        found = measure_tools(folder, tool, device, progress, utterances.utterances)
        missing_tools = tuple(found.silence)
        by_tool = {gate_specs.TOOL_ACCURACY: found.accuracy, gate_specs.TOOL_SILENCE: found.silence}
    return _Found(figures, by_tool, missing_tools)


def candidate_of(
    metadata: BuildMetadata, *, compared: bool, parameters: int = 0, utterances: UtteranceSet = NO_UTTERANCES
) -> Candidate:
    """Return the facts about an artifact that the gates depend on.

    Args:
        compared: whether there is a float model to hold it against.
        parameters: weights of the chat model.
        utterances: the user's, to measure the classifier's tools on.
    """
    chat, tool = metadata.chat, metadata.tool
    coverage = coverage_of(tool.served_tools, utterances.utterances) if tool else None
    return Candidate(
        lane_of_artifact(metadata.lane, metadata.engine),
        chat=chat is not None,
        method=chat.quantization.method if chat and compared else None,
        parameters=parameters,
        prompt_tokens=chat.limits.max_input_len if chat else 0,
        classifier=None if tool is None else "embedded" if tool.source.repo == EMBEDDED else "other",
        tools_measured=coverage is None or coverage.measured,
        tools_unmeasured=coverage is not None and bool(coverage.missing),
        tuned=chat is not None and chat.tuned,
    )
