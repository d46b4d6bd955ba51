"""Installing at a place: whole or not at all, one run after another, and never over what is somebody's."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from pipeline.stages import disk, install
from pipeline.stages.install import held, install_artifact, install_folder, recover
from pipeline.stages.lock import folder_locked
from pipeline.stages.stage import StageError
from pipeline.stages.staging import MARKER, marker_for
from runtime import artifact
from runtime.artifact import BuildMetadata, hashes
from tests.hub.artifacts import cpu_artifact

WAIT_S = 30


def made(folder: Path, weights: bytes = b"new") -> tuple[Path, BuildMetadata]:
    """An artifact as the cache holds it, its metadata beside it."""
    metadata = artifact.read(cpu_artifact(folder, weights=weights))
    (folder / "build_metadata.json").unlink()
    return folder, metadata


def put(tmp_path: Path, out: Path, weights: bytes = b"new", name: str = "cache") -> BuildMetadata:
    folder, metadata = made(tmp_path / f"made {weights.decode()} {name}", weights)
    install_artifact(folder, out, metadata, tmp_path / name)
    return metadata


def check(out: Path, metadata: BuildMetadata) -> None:
    assert artifact.read(out) == metadata
    hashes.verify_files(out, metadata)
    assert [path.name for path in out.resolve().parent.iterdir() if path.name.startswith(".")] == []


def test_an_artifact_appears_and_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "at" / "deep" / "demo"
    check(out, put(tmp_path, out, b"one"))
    check(out, put(tmp_path, out, b"two"))


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    real = tmp_path / "real" / "v1"
    put(tmp_path, real, b"one")
    link = tmp_path / "current"
    link.symlink_to("real/v1")
    check(link, put(tmp_path, link, b"two"))
    assert link.readlink() == Path("real/v1")
    assert not real.is_symlink()


def test_a_link_to_nothing_gets_its_folder(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("later/v1")
    check(tmp_path / "later" / "v1", put(tmp_path, tmp_path / "current"))
    assert (tmp_path / "current").is_symlink()


def test_the_copies_can_be_read_by_whoever_may_read_what_this_user_writes(tmp_path: Path) -> None:
    folder, metadata = made(tmp_path / "made")
    (folder / "model.safetensors").chmod(0o600)
    install_artifact(folder, tmp_path / "demo", metadata, tmp_path / "cache")
    (tmp_path / "plain").write_text("")
    expected = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "demo" / "model.safetensors").stat().st_mode == expected
    (tmp_path / "folder").mkdir()
    assert (tmp_path / "demo").stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_a_file_that_changed_in_the_cache_never_gets_to_the_place(tmp_path: Path) -> None:
    before = put(tmp_path, tmp_path / "demo", b"one")
    folder, metadata = made(tmp_path / "made", b"two")
    (folder / "model.safetensors").write_bytes(b"owt")
    with pytest.raises(StageError, match=r"stage finish failed: .*expected SHA-256 .*; run the same command again"):
        install_artifact(folder, tmp_path / "demo", metadata, tmp_path / "cache")
    check(tmp_path / "demo", before)


@pytest.mark.parametrize("can", [True, False], ids=["exchange", "no exchange"])
def test_what_was_written_into_the_old_artifact_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool
) -> None:
    if not can:
        monkeypatch.setattr(disk, "exchange", lambda one, other: False)
    out = tmp_path / "demo"
    put(tmp_path, out, b"one")

    def replace(new: Path, place: Path, old: Path) -> None:
        if place == out and not (out / "notes.txt").exists() and not (new / "notes.txt").exists():
            (out / "notes.txt").write_text("irreplaceable")
        disk.atomic_replace(new, place, old)

    monkeypatch.setattr(install, "atomic_replace", replace)
    folder, metadata = made(tmp_path / "made", b"two")
    with pytest.raises(StageError, match=r"expected an artifact's own files .* found notes\.txt too; move it away"):
        install_artifact(folder, out, metadata, tmp_path / "cache")
    assert (out / "notes.txt").read_text() == "irreplaceable"
    assert (out / "model.safetensors").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_came_to_the_place_since_the_plan_was_made_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    (out / "thesis.txt").write_text("irreplaceable")
    folder, metadata = made(tmp_path / "made")
    with pytest.raises(
        StageError, match=r"stage finish failed: --out: expected .*, found other files in .*thesis\.txt"
    ):
        install_artifact(folder, out, metadata, tmp_path / "cache")
    assert (out / "thesis.txt").read_text() == "irreplaceable"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_what_the_system_refuses_is_one_line_and_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    before = put(tmp_path, tmp_path / "demo", b"one")
    folder, metadata = made(tmp_path / "made", b"two")

    def refuse(source: Path, to: Path) -> None:
        to.write_bytes(b"ha")
        raise OSError(error, os.strerror(error), str(to))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", refuse)
        with pytest.raises(StageError, match=rf"^stage finish failed: {os.strerror(error)} \(.*\); make room or"):
            install_artifact(folder, tmp_path / "demo", metadata, tmp_path / "cache")
    check(tmp_path / "demo", before)
    install_artifact(folder, tmp_path / "demo", metadata, tmp_path / "cache")
    check(tmp_path / "demo", metadata)


def test_runs_with_two_caches_wait_for_each_other(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    put(tmp_path, out, b"one")
    folder, metadata = made(tmp_path / "made", b"two")
    waits = threading.Event()
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        waits.set()

    work = threading.Thread(target=install_artifact, args=(folder, out, metadata, tmp_path / "another cache", tell))
    with folder_locked(tmp_path, None):
        work.start()
        assert waits.wait(WAIT_S)
        assert (out / "model.safetensors").read_bytes() == b"one"
    work.join(WAIT_S)
    assert told == ["finish: waiting for another run"]
    check(out, metadata)


def test_many_runs_into_one_place_leave_one_whole_artifact(tmp_path: Path) -> None:
    out, works = tmp_path / "demo", []
    names = [f"{number}".encode() for number in range(8)]
    for name in names:
        folder, metadata = made(tmp_path / f"made {name.decode()}", name)
        caches = tmp_path / f"cache {name.decode()}"
        works.append(threading.Thread(target=install_artifact, args=(folder, out, metadata, caches)))
    for work in works:
        work.start()
    for work in works:
        work.join(WAIT_S)
    check(out, artifact.read(out))
    assert (out / "model.safetensors").read_bytes() in names


def test_a_folder_that_takes_no_lock_is_worked_in_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr("fcntl.flock", refuse)
    check(tmp_path / "demo", put(tmp_path, tmp_path / "demo"))


def test_what_a_killed_run_moved_aside_comes_back_though_the_next_one_fails(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    before = put(tmp_path, out, b"one")
    aside = tmp_path / ".yap-partial-abcd1234"
    aside.mkdir()
    (aside / MARKER).write_bytes(marker_for("demo"))
    out.rename(aside / "old")
    with folder_locked(tmp_path, None):
        recover(out)  # another run is at work there: it does this itself
        assert not out.exists()
    recover(out)
    check(out, before)


def test_recovering_touches_nothing_else(tmp_path: Path) -> None:
    mine = tmp_path / ".yap-partial-abcd1234" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("irreplaceable")
    for place in (tmp_path / "demo", tmp_path / "missing" / "demo", Path("a\0b"), Path("~nobody-of-that-name/x")):
        recover(place)
    assert mine.read_text() == "irreplaceable"


def quantized(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"quantization_config": {}}')
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_quantized_model_is_replaced_by_the_cache_that_made_it_alone(tmp_path: Path) -> None:
    one, two = quantized(tmp_path / "one", b"one"), quantized(tmp_path / "two", b"two")
    out, cache = tmp_path / "out", tmp_path / "cache"
    install_folder(one, out, cache)
    install_folder(two, out, cache)
    assert (out / "model.safetensors").read_bytes() == b"two"
    with pytest.raises(StageError, match=r"found something else at .*, which this cache did not make \(config\.json"):
        install_folder(one, out, tmp_path / "another cache")
    (out / "notes.txt").write_text("irreplaceable")
    with pytest.raises(StageError, match=r"did not make \(notes\.txt\)"):
        install_folder(one, out, cache)
    assert (out / "notes.txt").read_text() == "irreplaceable"
    assert (out / "model.safetensors").read_bytes() == b"two"


def test_a_model_is_known_though_its_record_was_cut_once(tmp_path: Path) -> None:
    one, two = quantized(tmp_path / "one", b"one"), quantized(tmp_path / "two", b"two")
    install_folder(one, tmp_path / "out", tmp_path / "cache")
    (record,) = (tmp_path / "cache" / "placed").glob("*/record.json")
    record.write_text(record.read_text()[:-9])
    with pytest.raises(StageError, match="which this cache did not make"):
        install_folder(two, tmp_path / "out", tmp_path / "cache")
    install_folder(one, tmp_path / "elsewhere", tmp_path / "cache")
    install_folder(two, tmp_path / "out", tmp_path / "cache")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"two"


def test_a_quantized_model_that_is_there_stays(tmp_path: Path) -> None:
    one = quantized(tmp_path / "one", b"one")
    install_folder(one, tmp_path / "out", tmp_path / "cache")
    before = (tmp_path / "out").stat().st_ino
    install_folder(one, tmp_path / "out", tmp_path / "cache")
    assert (tmp_path / "out").stat().st_ino == before


@pytest.mark.parametrize("stage", ["validate", "sign"])
def test_whoever_changes_an_artifact_holds_its_place(tmp_path: Path, stage: str) -> None:
    put(tmp_path, tmp_path / "demo")

    def busy() -> None:
        with folder_locked(tmp_path, None):
            raise AssertionError("two hold one place")

    with held(tmp_path / "demo", stage), pytest.raises(BlockingIOError):
        busy()


def test_a_proof_can_be_written_where_the_folder_above_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Path, flags: int) -> int:
        if Path(path) == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    with held(tmp_path / "demo", "validate"):
        (tmp_path / "written").write_text("")


def test_a_refusal_while_an_artifact_is_held_is_one_line(tmp_path: Path) -> None:
    def fail() -> None:
        with held(tmp_path / "demo", "sign"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StageError, match="stage sign failed: No space left on device"):
        fail()
