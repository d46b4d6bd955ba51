"""The facts about this disk that a plan depends on, read before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from pipeline.plan import BuildRequest
from pipeline.problem import Problem
from pipeline.settings import PipelineSettings
from pipeline.source.utterance_file import UtteranceFile, UtterancesError, read_utterances
from pipeline.stages import place
from runtime.artifact import METADATA_NAME, ArtifactError
from runtime.engines.trt.folders import CheckpointFolder, EngineFolder

# Where an artifact goes unless `--out` names a place.
ARTIFACTS = Path("artifacts")

# Stands for every name in there that nothing has yet.
NEW_ARTIFACT = ARTIFACTS / ".new"


class PathEntry(Enum):
    """The kind of thing that lies at a path."""

    NOTHING = auto()
    FILE = auto()
    EMPTY_FOLDER = auto()
    ARTIFACT = auto()
    OTHER_FOLDER = auto()
    UNREADABLE = auto()


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """The facts about this disk, as far as a request and the settings name paths on it.

    Attributes:
        entries: what lies where the artifact may go; nothing lies at a path that is not listed.
        refusals: why the artifact may not go there, for those of them where it may not.
        dataset: what lies at the path that AWQ_CALIB_DATASET would be.
        engine: what TRTLLM_ENGINE_DIR names, or why it cannot be read; none when it is not set.
        checkpoint: what TRT_CHECKPOINT_DIR names, likewise.
        dataset_problem: why that data set cannot be calibrated on; none where that is not known yet.
        free_at_out: bytes free where the artifact goes; none where that is the cache's disk, which is looked at alone.
        utterances: the labelled utterances that are named, or why they cannot be read; none when none are.
    """

    entries: Mapping[Path, PathEntry] = field(default_factory=dict)
    refusals: Mapping[Path, Problem] = field(default_factory=dict)
    dataset: PathEntry = PathEntry.NOTHING
    engine: EngineFolder | ArtifactError | None = None
    checkpoint: CheckpointFolder | ArtifactError | None = None
    dataset_problem: Problem | None = None
    free_at_out: int | None = None
    utterances: UtteranceFile | UtterancesError | None = None

    def check_complete(self, settings: PipelineSettings) -> None:
        """Check that these facts were read for the settings.

        Raises:
            ValueError: a folder that is named was not looked at.
        """
        for named, fact in ((settings.trtllm_engine_dir, self.engine), (settings.trt_checkpoint_dir, self.checkpoint)):
            if named is not None and fact is None:
                raise ValueError(f"expected facts on {named}, found none; read them with `disk_facts.read`")


def read(request: BuildRequest, settings: PipelineSettings, cache: Path | None = None) -> DiskFacts:
    """Read the paths that a request and the settings name; what cannot be read is a fact too, and nothing is raised.

    Args:
        request: the command line.
        settings: the environment.
        cache: the folder of finished stages, which the artifact's place may not overlap with.
    """
    engine, checkpoint = settings.trtllm_engine_dir, settings.trt_checkpoint_dir
    candidates = _candidates(request)
    refusals = {path: place.artifact_problem(path, cache) for path in candidates}
    return DiskFacts(
        entries={path: entry_at(path) for path in candidates},
        refusals={path: problem for path, problem in refusals.items() if problem},
        dataset=entry_at(Path(settings.awq_calib_dataset)) if settings.awq_calib_dataset else PathEntry.NOTHING,
        engine=_engine(engine) if engine else None,
        checkpoint=_checkpoint(checkpoint) if checkpoint else None,
        utterances=_utterances(
            settings.tool_utterances if request.tool_utterances is None else request.tool_utterances
        ),
    )


def entry_at(path: Path) -> PathEntry:
    """Tell what lies at a path; `~` is the home folder."""
    try:
        path = path.expanduser()
        if not path.exists():
            return PathEntry.NOTHING
        if not path.is_dir():
            return PathEntry.FILE
        if (path / METADATA_NAME).is_file():
            return PathEntry.ARTIFACT
        return PathEntry.OTHER_FOLDER if any(path.iterdir()) else PathEntry.EMPTY_FOLDER
    except (OSError, ValueError, RuntimeError):
        # locked, a name that the system refuses, or the home of a user whom it does not know
        return PathEntry.UNREADABLE


def _candidates(request: BuildRequest) -> list[Path]:
    """Return the paths of which the plan will choose one: the name depends on what the plan decides."""
    if not request.finishes:
        return []
    if request.out:
        return [request.out]
    try:
        return [NEW_ARTIFACT, *(ARTIFACTS / child.name for child in ARTIFACTS.iterdir())]
    except OSError:
        return [NEW_ARTIFACT]


def _utterances(path: Path | None) -> UtteranceFile | UtterancesError | None:
    if path is None:
        return None
    try:
        return read_utterances(path)
    except UtterancesError as error:
        return error


def _engine(folder: Path) -> EngineFolder | ArtifactError:
    try:
        return EngineFolder.read(_expanded(folder))
    except ArtifactError as error:
        return error


def _checkpoint(folder: Path) -> CheckpointFolder | ArtifactError:
    try:
        return CheckpointFolder.read(_expanded(folder))
    except ArtifactError as error:
        return error


def _expanded(folder: Path) -> Path:
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise ArtifactError(f"{folder}: {error}") from error
