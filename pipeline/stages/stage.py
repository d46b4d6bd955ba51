"""Stages: work that is done once for each set of inputs, whole or not at all.

A stage's key is a hash over everything that decides its output. Its output is written into a temporary folder, flushed
to disk and renamed, so a folder under its final name is complete however the process that made it ended. A lock for
each key lets two runs share one cache: the second waits, then finds the work done.

    CACHE/quantize/4f1c…/output/…       what the stage made
    CACHE/quantize/4f1c…/record.json    its inputs, its result, its seconds, and what each file was like
    CACHE/quantize/4f1c….lock           held while the stage runs
    CACHE/quantize/4f1c….partial-k3w9/  a run in progress, or what a killed one left; the next run removes it
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.progress import Progress
from runtime.artifact import StageRecord
from runtime.artifact.hashes import sha256_of

RECORD_NAME = "record.json"

# JSON as a stage's inputs and results hold it.
Json = Any


class StageError(Exception):
    """A stage failed; the message is one line that says what happened, where, and what to do next.

    Attributes:
        stage: the stage's name, such as `quantize`.
        what: what happened, with expected and found where that applies.
        where: the file, folder or program that it happened to; may be empty.
        next_step: what the user does now.
    """

    def __init__(self, stage: str, what: str, where: str | Path = "", next_step: str = "") -> None:
        self.stage, self.what, self.where, self.next_step = stage, what, str(where), next_step
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        remedy = f"; {self.next_step}" if self.next_step else ""
        return f"stage {self.stage} failed: {self.what}{place}{remedy}"


@dataclass(frozen=True, slots=True)
class Stage:
    """One unit of work, with all the inputs that decide its output.

    Attributes:
        name: a word that is also the folder's name.
        inputs: JSON values; all that decides the output, and nothing else.
        work: fills the given empty folder and returns a JSON result, which is kept with the output.
    """

    name: str
    inputs: Mapping[str, Json]
    work: Callable[[Path], Mapping[str, Json]]

    @property
    def key(self) -> str:
        """The SHA-256 over the name and the inputs in canonical JSON, in hex."""
        return key_of(self.name, self.inputs)


@dataclass(frozen=True, slots=True)
class StageResult:
    """A finished stage.

    Attributes:
        name: the stage's name.
        key: the stage's key.
        output: the folder that it filled.
        result: what its work returned.
        seconds: how long the work took, when it was done.
        reused: whether an earlier run had done it.
        hashes: SHA-256 of each file when the stage finished, by relative POSIX path.
    """

    name: str
    key: str
    output: Path
    result: Mapping[str, Json]
    seconds: float
    reused: bool
    hashes: Mapping[str, str]

    @property
    def record(self) -> StageRecord:
        """The stage's entry in the artifact's metadata."""
        return StageRecord(name=self.name, key=self.key, seconds=round(self.seconds, 3))


def key_of(name: str, inputs: Mapping[str, Json]) -> str:
    """Return the key of a stage; equal inputs give equal keys whatever their order.

    >>> key_of("build", {"a": 1, "b": 2}) == key_of("build", {"b": 2, "a": 1})
    True
    """
    text = json.dumps({"stage": name, "inputs": dict(inputs)}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class StageCache:
    """The folder that keeps finished stages, by name and key."""

    def __init__(self, folder: Path, *, force: bool = False) -> None:
        self.folder = folder
        self._force = force

    def run(self, stage: Stage, progress: Progress) -> StageResult:
        """Return a stage's result; its work runs when there is none, it is damaged, or `force` is set.

        Raises:
            StageError: the work failed, or the cache cannot be written.
        """
        home = self.folder / stage.name
        final = home / stage.key[:32]
        try:
            home.mkdir(parents=True, exist_ok=True)
            with locked(final.with_suffix(".lock"), lambda: progress.step(f"{stage.name}: waiting for another run")):
                remove_leftovers(home, final.name)
                if not self._force and (done := load_result(stage, final)) is not None:
                    return done
                return self._work(stage, final)
        except OSError as error:
            raise StageError(
                stage.name,
                f"{error.strerror or error}",
                error.filename or home,
                f"look at the free space and the permissions of {self.folder}, then run the same command again",
            ) from error

    def _work(self, stage: Stage, final: Path) -> StageResult:
        partial = Path(tempfile.mkdtemp(prefix=f"{final.name}.partial-", dir=final.parent))
        try:
            output = partial / "output"
            output.mkdir()
            begun = time.monotonic()
            result = dict(stage.work(output))
            seconds = time.monotonic() - begun
            files = fingerprints(output)
            record = {
                "name": stage.name,
                "key": stage.key,
                "inputs": dict(stage.inputs),
                "result": result,
                "seconds": seconds,
                "files": files,
            }
            (partial / RECORD_NAME).write_text(json.dumps(record, indent=2, sort_keys=True), encoding="utf-8")
            fsync_tree(partial)
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            fsync(final.parent)
        finally:
            if partial.exists():
                shutil.rmtree(partial, ignore_errors=True)
        return StageResult(stage.name, stage.key, final / "output", result, seconds, False, hashes_of(files))


def load_result(stage: Stage, final: Path) -> StageResult | None:
    """Load a finished stage; none when it is missing or its files are not those that it recorded."""
    output = final / "output"
    try:
        record = json.loads((final / RECORD_NAME).read_bytes())
        if record["key"] != stage.key or not unchanged(output, record["files"]):
            return None
        hashes = hashes_of(record["files"])
        return StageResult(stage.name, stage.key, output, record["result"], float(record["seconds"]), True, hashes)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # torn, or written by another version: the stage is done again


# Size, modification time in nanoseconds, and SHA-256 of a file.
Fingerprint = list[Any]


def fingerprints(folder: Path) -> dict[str, Fingerprint]:
    """Return the fingerprint of each file under a folder, by relative POSIX path."""
    found: dict[str, Fingerprint] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            status = path.stat()
            found[path.relative_to(folder).as_posix()] = [status.st_size, status.st_mtime_ns, sha256_of(path)]
    return found


def hashes_of(files: Mapping[str, Fingerprint]) -> dict[str, str]:
    """Return the SHA-256 of each file, without size and time."""
    return {path: fingerprint[2] for path, fingerprint in files.items()}


def unchanged(folder: Path, files: Mapping[str, Fingerprint]) -> bool:
    """Tell whether a folder holds the recorded files and no others.

    Only files whose modification time changed are read again.
    """
    present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    if present.keys() != files.keys():
        return False
    for name, path in present.items():
        size, modified, digest = files[name]
        status = path.stat()
        if status.st_size != size or (status.st_mtime_ns != modified and sha256_of(path) != digest):
            return False
    return True


def remove_leftovers(home: Path, name: str) -> None:
    """Remove what killed runs of one key left; the caller holds that key's lock."""
    for leftover in home.glob(f"{name}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def remove_all_leftovers(cache: Path) -> None:
    """Remove what killed runs left in the cache, except under keys that another process works on."""
    for leftover in cache.glob("*/*.partial-*"):
        lock = leftover.with_name(leftover.name.partition(".")[0] + ".lock")
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel drops it when the process ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder to disk, so that a later rename cannot reach the disk before them."""
    for root, _, names in os.walk(folder):
        for name in names:
            fsync(Path(root) / name)
        fsync(Path(root))


def fsync(path: Path) -> None:
    """Flush one file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
