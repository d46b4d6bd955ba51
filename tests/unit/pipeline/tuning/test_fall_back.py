"""Tuned options that a later stage refuses cost the build nothing but themselves."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.run import GateError, Run
from pipeline.stages.stage import StageError
from runtime import artifact
from runtime.artifact import ArtifactError, BuildMetadata, EngineChoices
from tests.harness.builds.progress import RecordedProgress
from tests.harness.faults.refusing import FULL, WON, replaced, run_in

PLAIN = EngineChoices()


class Stages:
    """What becomes of each stage, by its options: nothing, an error, or a failed gate."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = tmp_path
        self.asked: list[tuple[str, bool]] = []
        self.answers: dict[tuple[str, bool], BaseException | bool] = {}
        monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
        for module, name, standin in replaced(self._refuse):
            monkeypatch.setattr(module, name, standin)

    def _refuse(self, stage: str, options: EngineChoices) -> bool:
        asked = (stage, options == FULL)
        self.asked.append(asked)
        answer = self.answers.get(asked, False)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def run(self, *, force: bool = False) -> tuple[BuildMetadata, RecordedProgress]:
        run, told = run_in(self.folder, force=force)
        run.finish(*run.validate())
        return artifact.read(self.folder / "artifact"), told

    def begin(self) -> Run:
        return run_in(self.folder)[0]


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(tmp_path, monkeypatch)


def options_of(metadata: BuildMetadata) -> artifact.TunedOptions:
    assert metadata.chat is not None
    assert metadata.chat.engine_options is not None
    return metadata.chat.engine_options


REFUSALS: list[Any] = [
    ("build", RuntimeError("no kernel image is available\nsecond line"), "no kernel image is available"),
    ("build", StageError("build", "the engine did not start: it hung", Path("out"), "read its log"), "it hung"),
    ("validate", RuntimeError("the engine process died"), "the engine process died"),
    ("validate", ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "Connection reset"),
    ("validate", FileNotFoundError(errno.ENOENT, "No such file or directory", "nvcc"), "nvcc"),
    ("validate", MemoryError(), "MemoryError"),
    ("validate", True, "perplexity_ratio"),
]


def test_without_a_refusal_they_are_baked(stages: Stages) -> None:
    metadata, told = stages.run()
    assert options_of(metadata) == WON
    assert stages.asked == [("build", True), ("validate", True)]
    assert not [line for line in told.steps if "refused" in line]


@pytest.mark.parametrize(("stage", "answer", "reason"), REFUSALS)
def test_the_plain_options_are_built_and_proven_once_and_it_is_said_why(
    stages: Stages, stage: str, answer: BaseException | bool, reason: str
) -> None:
    stages.answers[stage, True] = answer
    metadata, told = stages.run()
    tried = [("build", True)] if stage == "build" else [("build", True), ("validate", True)]
    assert stages.asked == [*tried, ("build", False), ("validate", False)]
    (line,) = [line for line in told.steps if "refused" in line]
    assert line.isprintable()
    assert "plain" in line
    found = options_of(metadata)
    assert found.refused is not None
    for text in (line, found.refused.reason):
        assert reason in text
    assert (found.refused.stage, found.refused.options, found.choices) == (stage, FULL, PLAIN)
    assert found.candidates == WON.candidates
    names = [record.name for record in metadata.stages]
    assert names.count("build") == names.count("validate") == 1
    assert (stages.folder / "artifact" / "compiled.txt").read_text() == PLAIN.text

    stages.asked.clear()
    again, _ = stages.run()  # all of it is known
    assert stages.asked == []
    assert (again.digest, options_of(again)) == (metadata.digest, found)

    stages.answers.clear()
    tried_again, _ = stages.run(force=True)
    assert options_of(tried_again) == WON


@pytest.mark.parametrize("stage", ["build", "validate"])
def test_where_the_plain_options_fail_too_their_failure_is_told_and_nothing_is_kept(stages: Stages, stage: str) -> None:
    stages.answers[stage, True] = RuntimeError("with")
    stages.answers[stage, False] = StageError(stage, "without")
    with pytest.raises(StageError, match="without"):
        stages.run()
    assert not (stages.folder / "artifact").exists()
    stages.answers.clear()
    metadata, _ = stages.run()
    assert options_of(metadata) == WON  # the options were not why


def test_a_gate_that_fails_without_them_too_is_what_is_told(stages: Stages) -> None:
    stages.answers["validate", True] = stages.answers["validate", False] = True
    with pytest.raises(GateError):
        stages.run()
    assert stages.asked == [("build", True), ("validate", True), ("build", False), ("validate", False)]


OTHERS: list[Any] = [
    OSError(errno.ENOSPC, "No space left on device"),
    PermissionError(errno.EACCES, "Permission denied", "cache"),
    RuntimeError("the engine's process said: OSError: [Errno 28] No space left on device"),
    KeyboardInterrupt(),
    SystemExit(3),
]


def _from(cause: BaseException) -> Exception:
    error = StageError("build", "it could not be written")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("stage", ["build", "validate"])
@pytest.mark.parametrize("error", [*OTHERS, _from(OTHERS[0])], ids=lambda error: type(error).__name__)
def test_what_no_option_changes_ends_the_run_and_is_held_against_none(
    stages: Stages, stage: str, error: BaseException
) -> None:
    stages.answers[stage, True] = error
    with pytest.raises((type(error), StageError)):
        stages.run()
    assert all(tuned for _, tuned in stages.asked)
    stages.answers.clear()
    metadata, _ = stages.run()
    assert options_of(metadata) == WON


def test_a_classifier_that_fails_its_gates_is_no_matter_of_the_chat_models_engine(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GateError, "classifier_alone", True)
    stages.answers["validate", True] = True
    with pytest.raises(GateError):
        stages.run()
    assert stages.asked == [("build", True), ("validate", True)]


@pytest.mark.parametrize("stage", ["build", "validate"])
def test_a_full_disk_in_the_fall_back_is_told_and_the_next_run_goes_on_there(stages: Stages, stage: str) -> None:
    stages.answers[stage, True] = RuntimeError("with")
    stages.answers["build", False] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StageError, match="No space left"):
        stages.run()
    stages.asked.clear()
    stages.answers.clear()
    metadata, _ = stages.run()
    assert stages.asked == [("build", False), ("validate", False)]
    refused = options_of(metadata).refused
    assert refused is not None
    assert refused.stage == stage


def test_build_alone_falls_back_too_and_its_artifact_is_proven_as_it_lies(stages: Stages) -> None:
    stages.answers["build", True] = RuntimeError("with")
    run = stages.begin()
    _, metadata = run.build()
    assert options_of(metadata).refused is not None
    assert metadata.validation is None
    stages.asked.clear()
    proven, _ = stages.run()
    assert stages.asked == [("validate", False)]
    assert proven.digest == metadata.digest


@pytest.mark.parametrize("stage", ["build", "validate"])
def test_a_run_that_is_killed_in_the_fall_back_ends_in_the_same_digest(tmp_path: Path, stage: str) -> None:
    def make(name: str, die_at: str = "") -> tuple[int, list[str]]:
        calls = tmp_path / f"{name}.calls"
        calls.unlink(missing_ok=True)
        environment = {**os.environ, "CALLS": str(calls), "DIE_AT": die_at}
        command = [sys.executable, "-m", "tests.harness.faults.refusing", str(tmp_path / name), stage]
        ended = subprocess.run(command, env=environment, check=False, capture_output=True)
        return ended.returncode, calls.read_text().split()

    assert make("whole")[0] == 0
    # With the tuned options nothing of these is recorded, where `build` refuses them: the plain ones are killed.
    code, _ = make("killed", "build" if stage == "build" else "validate")
    assert code == -signal.SIGKILL
    with pytest.raises(ArtifactError):
        artifact.read(tmp_path / "killed" / "artifact")
    code, calls = make("killed")
    assert code == 0
    assert calls == (["build", "reference", "validate", "install"] if stage == "build" else ["validate", "install"])
    whole, killed = (artifact.read(tmp_path / name / "artifact") for name in ("whole", "killed"))
    assert killed.digest == whole.digest
    assert options_of(killed) == options_of(whole)
    assert options_of(killed).refused is not None
