"""Stages are done once for their inputs, whole or not at all, however a run ends."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stages import staging
from pipeline.stages.stage import Stage, StageCache, StageError, key_of, remove_all_leftovers
from tests.harness.builds.progress import RecordedProgress

ROOT = Path(__file__).resolve().parents[4]


class Work:
    """Writes two files and counts how often it was asked to."""

    def __init__(self, result: Mapping[str, Any] | None = None) -> None:
        self.times = 0
        self.result = result or {}

    def __call__(self, out: Path) -> Mapping[str, Any]:
        self.times += 1
        assert list(out.iterdir()) == []
        (out / "weights").write_bytes(b"w" * 1000)
        (out / "deep").mkdir()
        (out / "deep" / "config.json").write_text("{}")
        return self.result


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    work = Work({"figure": 1.5})
    first = StageCache(tmp_path).run(Stage("build", {"a": 1}, work), RecordedProgress())
    second = StageCache(tmp_path).run(Stage("build", {"a": 1}, work), RecordedProgress())
    assert work.times == 1
    assert (first.reused, second.reused) == (False, True)
    assert second.result == {"figure": 1.5}
    assert second.output == first.output
    assert second.seconds == first.seconds
    assert contents(second.output) == {"weights": b"w" * 1000, "deep/config.json": b"{}"}


def test_other_inputs_are_another_stage(tmp_path: Path) -> None:
    work = Work()
    first = StageCache(tmp_path).run(Stage("build", {"a": 1}, work), RecordedProgress())
    second = StageCache(tmp_path).run(Stage("build", {"a": 2}, work), RecordedProgress())
    third = StageCache(tmp_path).run(Stage("quantize", {"a": 1}, work), RecordedProgress())
    assert work.times == 3
    assert len({first.key, second.key, third.key}) == 3


def test_force_does_it_again(tmp_path: Path) -> None:
    work = Work()
    StageCache(tmp_path).run(Stage("build", {}, work), RecordedProgress())
    again = StageCache(tmp_path, force=True).run(Stage("build", {}, work), RecordedProgress())
    assert work.times == 2
    assert not again.reused


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/cache/x"),
        shutil.Error([("a", "/cache/x", "[Errno 28] No space left on device: '/cache/x'")]),
        # As safetensors and tokenizers word it.
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_whoever_notices_it(tmp_path: Path, error: Exception) -> None:
    def fail(out: Path) -> Mapping[str, Any]:
        (out / "half").write_text("half")
        raise error

    with pytest.raises(StageError, match=r"^stage build failed: .*No space left on device.*; look at the free") as told:
        StageCache(tmp_path).run(Stage("build", {}, fail), RecordedProgress())
    assert "\n" not in str(told.value)
    assert [path.name for path in (tmp_path / "build").iterdir() if not path.name.endswith(".lock")] == []


def test_what_has_nothing_to_do_with_the_disk_is_raised_as_it_is(tmp_path: Path) -> None:
    def fail(_: Path) -> Mapping[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        StageCache(tmp_path).run(Stage("build", {}, fail), RecordedProgress())


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(out: Path) -> Mapping[str, Any]:
        (out / "half").write_text("half")
        raise StageError("build", "expected four wheels, found three", out, "add one")

    with pytest.raises(StageError, match=r"stage build failed: expected four wheels, found three \(.*\); add one"):
        StageCache(tmp_path).run(Stage("build", {}, fail), RecordedProgress())
    assert [path.name for path in (tmp_path / "build").iterdir() if not path.name.endswith(".lock")] == []
    work = Work()
    assert not StageCache(tmp_path).run(Stage("build", {}, work), RecordedProgress()).reused


def flip(path: Path, at: int) -> None:
    """Change a byte of a file, and leave size and time as they were: what a failing disk does."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[at % len(content)] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["output/weights", "output/deep/config.json", "record.json"]), st.integers(0, 4000))
def test_any_byte_that_changed_is_noticed(name: str, at: int) -> None:
    with TemporaryDirectory() as folder:
        work, cache = Work({"figure": 1.5, "passed": True}), StageCache(Path(folder))
        done = cache.run(Stage("build", {"a": 1}, work), RecordedProgress())
        flip(done.output.parent / name, at)
        again = cache.run(Stage("build", {"a": 1}, work), RecordedProgress())
        # What stands in the record is told by a seal; between its words, white space may be of another kind.
        assert work.times == 2 or json.loads((done.output.parent / "record.json").read_bytes())
        assert again.result == {"figure": 1.5, "passed": True}
        assert contents(again.output) == {"weights": b"w" * 1000, "deep/config.json": b"{}"}


@pytest.mark.parametrize("stranger", ["link", "dangling", "folder link", "pipe"])
def test_what_is_no_file_is_noticed(tmp_path: Path, stranger: str) -> None:
    work = Work()
    done = StageCache(tmp_path).run(Stage("build", {}, work), RecordedProgress())
    if stranger == "pipe":
        os.mkfifo(done.output / "x")
    else:
        targets = {"link": done.output / "weights", "dangling": tmp_path / "gone", "folder link": done.output / "deep"}
        (done.output / "x").symlink_to(targets[stranger])
    told = RecordedProgress()
    assert not StageCache(tmp_path).run(Stage("build", {}, work), told).reused
    assert told.steps == ["build: x changed on the disk since it was made; doing it again"]
    assert StageCache(tmp_path).run(Stage("build", {}, work), told).reused


@pytest.mark.parametrize("damage", ["truncate", "rewrite", "remove", "add", "record", "no record"])
def test_a_damaged_stage_is_done_again(tmp_path: Path, damage: str) -> None:
    work = Work()
    done = StageCache(tmp_path).run(Stage("build", {}, work), RecordedProgress())
    record = done.output.parent / "record.json"
    if damage == "truncate":
        (done.output / "weights").write_bytes(b"w" * 999)
    elif damage == "rewrite":
        (done.output / "weights").write_bytes(b"x" * 1000)
    elif damage == "remove":
        (done.output / "deep" / "config.json").unlink()
    elif damage == "add":
        (done.output / "more").write_text("")
    elif damage == "record":
        record.write_text(record.read_text()[:-20])
    else:
        record.unlink()
    again = StageCache(tmp_path).run(Stage("build", {}, work), RecordedProgress())
    assert work.times == 2
    assert contents(again.output) == {"weights": b"w" * 1000, "deep/config.json": b"{}"}


@pytest.mark.parametrize("record", ["[]", "{}", '{"key": null}', "null"])
def test_a_record_of_another_version_is_done_again(tmp_path: Path, record: str) -> None:
    work = Work()
    done = StageCache(tmp_path).run(Stage("build", {}, work), RecordedProgress())
    path = done.output.parent / "record.json"
    # As an older pipeline wrote it: the right key, and other fields beside it.
    path.write_text(record if record != "{}" else json.dumps({"key": done.key, "sizes": {}}))
    assert not StageCache(tmp_path).run(Stage("build", {}, work), RecordedProgress()).reused
    assert work.times == 2


def test_a_stage_that_was_copied_elsewhere_and_back_still_counts(tmp_path: Path) -> None:
    work = Work()
    done = StageCache(tmp_path).run(Stage("build", {}, work), RecordedProgress())
    os.utime(done.output / "weights", ns=(1, 1))
    assert StageCache(tmp_path).run(Stage("build", {}, work), RecordedProgress()).reused


def test_a_cache_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StageError, match="look at the free space and the permissions"):
        StageCache(tmp_path / "cache").run(Stage("build", {}, Work()), RecordedProgress())


def test_the_record_tells_what_was_done(tmp_path: Path) -> None:
    done = StageCache(tmp_path).run(Stage("build", {"sm": 90}, Work({"x": "y"})), RecordedProgress())
    record = json.loads((done.output.parent / "record.json").read_text())
    assert record["inputs"] == {"sm": 90}
    assert record["result"] == {"x": "y"}
    assert record["key"] == done.key == done.record.key
    assert {path: footprint[0] for path, footprint in record["files"].items()} == {
        "deep/config.json": 2,
        "weights": 1000,
    }
    assert done.hashes["weights"] == hashlib.sha256(b"w" * 1000).hexdigest()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=5))
def test_the_order_of_inputs_does_not_matter(inputs: dict[str, Any]) -> None:
    turned = dict(reversed(list(inputs.items())))
    assert key_of("build", inputs) == key_of("build", turned)


@given(
    st.dictionaries(st.text(max_size=4), VALUES, max_size=3), st.dictionaries(st.text(max_size=4), VALUES, max_size=3)
)
def test_different_inputs_have_different_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (key_of("build", one) == key_of("build", other)) == same


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from pipeline.progress import PlainProgress
from pipeline.stages.stage import StageCache, Stage

def work(out):
    (out / "first").write_text("first")
    print("half", flush=True)
    deadline = time.monotonic() + 60
    while not Path(sys.argv[2]).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    (out / "second").write_text("second")
    return {{}}

done = StageCache(Path(sys.argv[1])).run(Stage("slow", {{"a": 1}}, work), PlainProgress())
print("reused" if done.reused else "done", sorted(p.name for p in done.output.iterdir()), flush=True)
"""


def start(cache: Path, go_on: Path) -> subprocess.Popen[str]:
    """A run in a process of its own, whose work comes to its end when the file `go_on` is there."""
    command = [sys.executable, "-c", SLOW.format(root=str(ROOT)), str(cache), str(go_on)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().startswith(word)


def test_a_killed_run_loses_one_stage_and_leaves_no_half(tmp_path: Path) -> None:
    with start(tmp_path, tmp_path / "never") as killed:
        wait_for(killed, "half")
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    left = [path.name for path in (tmp_path / "slow").iterdir()]
    assert any(".partial-" in name for name in left)
    assert not any("." not in name for name in left)
    with start(tmp_path, tmp_path) as again:
        out, _ = again.communicate(timeout=60)
    assert out.splitlines()[-1] == "done ['first', 'second']"
    assert [path.name for path in (tmp_path / "slow").iterdir() if ".partial-" in path.name] == []


def test_two_runs_on_one_cache_do_the_work_once(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    with start(tmp_path, go_on) as first:
        wait_for(first, "half")
        with start(tmp_path, go_on) as second:
            assert second.stderr is not None
            assert any("slow: waiting for another run" in line for line in second.stderr)
            go_on.touch()
            out, _ = second.communicate(timeout=60)
        assert first.wait(timeout=60) == 0
        assert out.strip() == "reused ['first', 'second']"
        assert first.stdout is not None
        assert first.stdout.read().strip() == "done ['first', 'second']"


def test_sweeping_removes_leftovers_but_nothing_that_runs(tmp_path: Path) -> None:
    with start(tmp_path, tmp_path / "never") as running:
        wait_for(running, "half")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "abc.partial-1234").mkdir()
        remove_all_leftovers(tmp_path)
        assert not (tmp_path / "other" / "abc.partial-1234").exists()
        assert list((tmp_path / "slow").glob("*.partial-*"))
        running.kill()
        running.wait()
    remove_all_leftovers(tmp_path)
    assert not list(tmp_path.glob("*/*.partial-*"))


def test_sweeping_spares_what_others_keep_under_such_names(tmp_path: Path) -> None:
    key = "0123456789abcdef" * 2
    mine = [
        tmp_path / "build" / f"{key}.partial-mine1234" / "thesis.txt",
        tmp_path / "downloads" / "film.partial-1" / "film.mkv",
        tmp_path / "build" / f"{key}.partial-file1234",
        tmp_path / "build" / f"{key}.partial-both1234" / "notes.txt",
        tmp_path / "build" / f"{key}.partial-text1234" / staging.MARKER,
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("irreplaceable")
    (mine[3].parent / staging.MARKER).write_bytes(staging.marker_for(key))
    (mine[3].parent / "new").mkdir()
    link = tmp_path / "build" / f"{key}.partial-link1234"
    link.symlink_to(mine[0].parent)
    ours = tmp_path / "build" / f"{key}.partial-ours1234"
    for folder in (ours / "new", ours / "old"):
        folder.mkdir(parents=True)
        (folder / "half").write_text("")
    (ours / staging.MARKER).write_bytes(staging.marker_for(key))
    (tmp_path / "build" / key).mkdir()
    remove_all_leftovers(tmp_path)
    assert not ours.exists()
    assert link.is_symlink()
    assert [path.read_text() for path in mine] == ["irreplaceable"] * len(mine)


def test_a_cache_that_cannot_be_read_is_no_error_of_the_sweep(tmp_path: Path) -> None:
    remove_all_leftovers(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    remove_all_leftovers(tmp_path / "file")
