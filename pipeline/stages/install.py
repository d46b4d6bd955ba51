"""Installs a finished folder at its place: copied beside it, verified, flushed to disk, and exchanged in one step.

Nothing but what the pipeline made itself is replaced (`place.py`). A place behind a link is replaced there, and the
link stays. Runs with one place wait for each other, whatever caches they work with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.problem import Problem
from pipeline.stages.disk import atomic_replace, copy_tree, fsync, fsync_tree, os_error_in, refusal_text
from pipeline.stages.fingerprints import Fingerprint, difference, fingerprints, hashes_of
from pipeline.stages.lock import folder_locked
from pipeline.stages.place import PLACED, artifact_problem, foreign_files, locate, model_problem
from pipeline.stages.stage import RECORD_NAME, StageError
from pipeline.stages.staging import staging, sweep
from runtime import artifact
from runtime.artifact import ArtifactError, BuildMetadata, hashes

# What folders beside an artifact are called while it is made; short, so that an artifact's own name may be long.
PREFIX = ".yap-partial"

Told = Callable[[str], None]


def install_artifact(
    folder: Path, out: Path, metadata: BuildMetadata, cache: Path, told: Told = lambda line: None
) -> Path:
    """Install an artifact at `out`, replacing the artifact there.

    An artifact there that holds the same files and was proven is left as it is, so that a repeated run changes nothing.

    Args:
        folder: its files, without metadata.
        out: where it goes.
        metadata: what is written into it, last.
        cache: the folder of finished stages, which may not overlap with the place.
        told: told of a wait for another run.

    Raises:
        StageError: a file changed on the way, the place cannot be written, or something else lies there by now.
    """

    def fill(new: Path) -> None:
        copy_tree(folder, new)
        hashes.verify_files(new, metadata)
        metadata.write(new)

    try:
        with _at(out, "finish", lambda: artifact_problem(out, cache), told) as place:
            if not is_installed(place, metadata):
                _replace(place, fill, "finish")
    except ArtifactError as error:
        raise StageError("finish", str(error), "", "run the same command again") from error
    return out.absolute()


def install_folder(folder: Path, out: Path, cache: Path, told: Told = lambda line: None) -> Path:
    """Install a quantized model at `out`, replacing the quantized model there that came from the same cache.

    Raises:
        StageError: a file changed on the way, the place cannot be written, or something else lies there by now.
    """
    stage = "quantize"
    with _at(out, stage, lambda: model_problem(out, cache), told) as place:
        files = fingerprints(folder)
        expected = hashes_of(files)

        def fill(new: Path) -> None:
            copy_tree(folder, new)
            if changed := difference(new, expected):
                raise StageError(stage, "a file changed while it was copied", changed, "run the same command again")
            _remember(cache, files)

        if not (place.is_dir() and any(place.iterdir()) and difference(place, expected) is None):
            _replace(place, fill, stage)
    return out.absolute()


def recover(place: Path) -> None:
    """Put back what a killed run had moved aside at a place, and remove what it left; nothing else is touched."""
    with suppress(OSError, RuntimeError, ValueError, BlockingIOError):
        found = locate(place)
        if found.parent.is_dir():
            with folder_locked(found.parent, None):
                sweep(found.parent, PREFIX)


def is_installed(out: Path, metadata: BuildMetadata) -> bool:
    """Tell whether `out` holds this artifact already, with the same files and the same validation."""
    try:
        there = artifact.read(out)
        hashes.verify_files(out, there)
    except ArtifactError:
        return False
    ignored = {"created_at"}
    return there.model_dump(exclude=ignored) == metadata.model_dump(exclude=ignored)


@contextmanager
def held(folder: Path, stage: str, told: Told = lambda line: None) -> Iterator[None]:
    """Hold the place of an artifact that is to be changed, so that no run exchanges it meanwhile.

    Raises:
        StageError: the folder cannot be reached, or what was done with it meanwhile was refused by the system.
    """
    with _os_errors_told(stage, folder), ExitStack() as stack:
        place = locate(folder)
        stack.enter_context(folder_locked(place.parent, lambda: told(f"{stage}: waiting for another run")))
        yield


@contextmanager
def _at(out: Path, stage: str, problem: Callable[[], Problem | None], told: Told) -> Iterator[Path]:
    """Hold a place under its lock, after what a killed run left beside it was put in order."""
    with _os_errors_told(stage, out), ExitStack() as stack:
        place = locate(out)
        place.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(folder_locked(place.parent, lambda: told(f"{stage}: waiting for another run")))
        sweep(place.parent, PREFIX)
        if found := problem():
            raise StageError(stage, str(found))
        yield place


@contextmanager
def _os_errors_told(stage: str, out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        refused = os_error_in(error)
        if refused is None:
            raise
        remedy = "make room or choose another place"
        raise StageError(stage, refusal_text(refused), refused.filename or out, remedy) from error


def _replace(place: Path, fill: Callable[[Path], None], stage: str) -> None:
    with staging(place, PREFIX) as made:
        fill(made.new)
        fsync_tree(made.new)
        atomic_replace(made.new, place, made.old)
        for replaced, free in ((made.new, made.old), (made.old, made.new)):
            if strangers := foreign_files(replaced):
                # Somebody wrote into it while the new one was made.
                atomic_replace(replaced, place, free)
                what = f"expected an artifact's own files at {place}, found {strangers[0]} too"
                raise StageError(stage, what, "", "move it away or choose another --out")


def _remember(cache: Path, files: Mapping[str, Fingerprint]) -> None:
    """Write down which files go to a place, so that they are known there as ours whatever becomes of the stage.

    It is named by its content, so that one that is there and whole is left alone, and one that was cut is written anew.
    """
    # As stages record them, but for the time, which says nothing of the content.
    timeless = {name: [size, 0, sha256] for name, (size, _, sha256) in files.items()}
    text = json.dumps({"files": timeless}, sort_keys=True)
    record = cache / PLACED / hashlib.sha256(text.encode()).hexdigest()[:32] / RECORD_NAME
    if record.is_file() and record.read_text(encoding="utf-8", errors="replace") == text:
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(text, encoding="utf-8")
    fsync(record)
