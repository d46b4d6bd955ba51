"""A staging folder is told by its content at every moment of its life, and what was moved aside comes back."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.stages import disk, staging
from pipeline.stages.staging import MARKER, is_ours, marker_for, put_back, remove, sweep

PREFIX = ".yap-partial"


def made(parent: Path, name: str = "demo") -> Path:
    """A staging folder as a killed run leaves it."""
    folder = parent / f"{PREFIX}-abcd1234"
    folder.mkdir()
    (folder / MARKER).write_bytes(marker_for(name))
    return folder


@pytest.mark.parametrize("length", range(len(marker_for("demo")) + 1))
def test_a_marker_that_was_cut_while_it_was_written_is_ours(tmp_path: Path, length: int) -> None:
    folder = made(tmp_path)
    (folder / MARKER).write_bytes(marker_for("demo")[:length])
    sweep(tmp_path, PREFIX)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["demo", "Ünïcode {braces}", 'quo"te', "a" * 250, "line\nbreak"])
def test_a_marker_names_any_name(tmp_path: Path, name: str) -> None:
    folder = made(tmp_path, name)
    (folder / "old").mkdir()
    (folder / "old" / "weights").write_text("finished")
    sweep(tmp_path, PREFIX)
    assert (tmp_path / name / "weights").read_text() == "finished"
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"my notes", b"{}", b"[]", b'{"made_by": "me", "for": "demo"}\n', b"\xff"])
def test_a_file_of_the_markers_name_alone_makes_nothing_ours(tmp_path: Path, content: bytes) -> None:
    folder = made(tmp_path)
    (folder / MARKER).write_bytes(content)
    (folder / "new").mkdir()
    (folder / "new" / "thesis.txt").write_text("irreplaceable")
    sweep(tmp_path, PREFIX)
    assert (folder / "new" / "thesis.txt").read_text() == "irreplaceable"


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc"])
def test_a_marker_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    folder = made(tmp_path, name)
    (folder / "old").mkdir()
    assert not is_ours(folder)
    assert not put_back(folder)
    remove(folder)
    assert (folder / "old").is_dir()


def test_what_was_moved_aside_is_put_back_over_nothing_and_over_an_empty_folder_alone(tmp_path: Path) -> None:
    folder = made(tmp_path)
    (folder / "old").mkdir()
    (folder / "old" / "weights").write_text("finished")
    (tmp_path / "demo").mkdir()
    assert put_back(folder)
    assert (tmp_path / "demo" / "weights").read_text() == "finished"
    (folder / "old").mkdir()
    (folder / "old" / "weights").write_text("older")
    sweep(tmp_path, PREFIX)
    assert (tmp_path / "demo" / "weights").read_text() == "finished"
    assert not folder.exists()


def test_what_cannot_be_put_back_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path)
    (folder / "old").mkdir()
    (folder / "old" / "weights").write_text("finished")

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        remove(folder)
        assert (folder / "old" / "weights").read_text() == "finished"
        with pytest.raises(OSError, match="Input/output"):
            sweep(tmp_path, PREFIX)
    sweep(tmp_path, PREFIX)
    assert (tmp_path / "demo" / "weights").read_text() == "finished"


def test_a_failure_removes_all_of_it(tmp_path: Path) -> None:
    def fail() -> None:
        with staging.staging(tmp_path / "demo", PREFIX) as folder:
            folder.new.mkdir()
            (folder.new / "half").write_text("")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("can", [True, False], ids=["exchange", "no exchange"])
@pytest.mark.parametrize("before", ["nothing", "empty", "full"])
def test_a_folder_takes_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool, before: str) -> None:
    if not can:
        monkeypatch.setattr(disk, "exchange", lambda one, other: False)
    place = tmp_path / "demo"
    if before != "nothing":
        place.mkdir()
    if before == "full":
        (place / "weights").write_text("old")
    with staging.staging(place, PREFIX) as folder:
        folder.new.mkdir()
        (folder.new / "weights").write_text("new")
        disk.atomic_replace(folder.new, place, folder.old)
        aside = folder.new if can else folder.old
        assert not aside.exists() or (aside / "weights").read_text() == "old"
    assert (place / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_this_system_exchanges_in_one_step(tmp_path: Path) -> None:
    """What CI and every supported host has; without it, the tests above would prove the other way alone."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    assert disk.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists()
    assert (tmp_path / "b" / "a").exists()


def test_an_exchange_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match="No such file"):
        disk.exchange(tmp_path / "a", tmp_path / "missing")


def test_a_rename_that_fails_after_the_first_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "exchange", lambda one, other: False)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "weights").write_text("old")
    with pytest.raises(FileNotFoundError):
        disk.atomic_replace(tmp_path / "missing", tmp_path / "demo", tmp_path / "aside")
    assert (tmp_path / "demo" / "weights").read_text() == "old"
    assert not (tmp_path / "aside").exists()


def test_what_another_run_works_in_is_not_swept_though_no_lock_keeps_runs_apart(tmp_path: Path) -> None:
    with staging.staging(tmp_path / "demo", PREFIX) as folder:
        folder.new.mkdir()
        sweep(tmp_path, PREFIX)
        assert folder.new.is_dir()
    assert list(tmp_path.iterdir()) == []
