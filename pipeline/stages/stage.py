"""Stages: work that is done once for each set of inputs, whole or not at all.

A stage's key is a hash over everything that decides its output. Its output is written into a temporary folder, flushed
to disk and renamed, so a folder under its final name is complete however the process that made it ended. A lock for
each key lets two runs share one cache: the second waits, then finds the work done. Whatever is taken from the cache is
read and compared with the record that the stage wrote when it finished; what differs is made again.

    CACHE/quantize/4f1c…/output/…           what the stage made
    CACHE/quantize/4f1c…/record.json        its inputs, its result, its seconds, what each file was like, and a seal
    CACHE/quantize/4f1c….lock               held while the stage runs
    CACHE/quantize/4f1c….partial-k3w9x0a_/  a run in progress, or what a killed one left; the next run removes it
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.problem import printable
from pipeline.progress import Progress
from pipeline.stages.disk import atomic_replace, fsync_tree, os_error_in, refusal_text
from pipeline.stages.fingerprints import difference, fingerprints, hashes_of
from pipeline.stages.lock import locked
from pipeline.stages.staging import is_in_use, is_ours, remove, staging, sweep
from runtime.artifact import StageRecord

RECORD_NAME = "record.json"

# The part of a key that names its folder, and what a folder in progress is called behind it.
_KEY_LENGTH = 32
_LEFTOVER = re.compile(r"([^.]+)\.partial-[a-z0-9_]+")

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
        return printable(f"stage {self.stage} failed: {self.what}{place}{remedy}")


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
        final = self._place(stage)
        try:
            home.mkdir(parents=True, exist_ok=True)
            with locked(final.with_suffix(".lock"), lambda: progress.step(f"{stage.name}: waiting for another run")):
                sweep(home, f"{final.name}.partial")
                if not self._force and (done := load_result(stage, final, progress)) is not None:
                    return done
                return self._work(stage, final)
        except StageError:
            raise
        except Exception as error:
            # Work writes through libraries that raise classes of their own when a disk is full.
            refused = os_error_in(error)
            if refused is None:
                raise
            remedy = f"look at the free space and the permissions of {self.folder}, then run the same command again"
            raise StageError(stage.name, refusal_text(refused), refused.filename or home, remedy) from error

    def find(self, stage: Stage, progress: Progress) -> StageResult | None:
        """Return the result of a stage that was done before, whole as it was then; its work is not done."""
        return None if self._force else load_result(stage, self._place(stage), progress)

    def forget(self, stage: Stage) -> None:
        """Remove a stage's result, if there is one: it will be done again.

        Without its record a folder is no result, so that nothing is half forgotten.
        """
        with suppress(OSError):
            (self._place(stage) / RECORD_NAME).unlink()

    def _place(self, stage: Stage) -> Path:
        return self.folder / stage.name / stage.key[:_KEY_LENGTH]

    def _work(self, stage: Stage, final: Path) -> StageResult:
        with staging(final, f"{final.name}.partial") as made:
            output = made.new / "output"
            output.mkdir(parents=True)
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
            record["seal"] = seal_of(record)
            (made.new / RECORD_NAME).write_text(json.dumps(record, indent=2, sort_keys=True), encoding="utf-8")
            fsync_tree(made.new)
            atomic_replace(made.new, final, made.old)
        return StageResult(stage.name, stage.key, final / "output", result, seconds, False, hashes_of(files))


def load_result(stage: Stage, final: Path, progress: Progress) -> StageResult | None:
    """Load a finished stage; none when it is missing, or it or its files are not as it recorded."""
    output = final / "output"
    try:
        record = json.loads((final / RECORD_NAME).read_bytes())
        if record["key"] != stage.key:
            return None
        recorded = hashes_of(record["files"])
        changed = RECORD_NAME if record["seal"] != seal_of(record) else difference(output, recorded)
        if changed:
            progress.step(f"{stage.name}: {changed} changed on the disk since it was made; doing it again")
            return None
        return StageResult(stage.name, stage.key, output, record["result"], float(record["seconds"]), True, recorded)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None  # torn, or written by another version: the stage is done again


def seal_of(record: Mapping[str, Json]) -> str:
    """Return a SHA-256 over a record without its seal, as it reads when it was written."""
    body = json.loads(json.dumps({name: value for name, value in record.items() if name != "seal"}))
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def remove_all_leftovers(cache: Path) -> None:
    """Remove what killed runs left in the cache, except under keys that another process works on.

    A folder is taken for a leftover by its content, so that a cache may lie where others keep theirs.
    """
    with suppress(OSError):  # a cache that cannot be written: the stage that needs it says so
        homes = [path for path in cache.iterdir() if path.is_dir()]
        for leftover in (path for home in homes for path in home.iterdir()):
            if (named := _LEFTOVER.fullmatch(leftover.name)) and is_ours(leftover):
                lock = leftover.with_name(f"{named[1]}.lock")
                with suppress(BlockingIOError), locked(lock, None) if lock.exists() else nullcontext():
                    if is_ours(leftover) and not is_in_use(leftover):
                        remove(leftover)
