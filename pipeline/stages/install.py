"""Installs a finished folder at its place: copied beside it, verified, flushed to disk, and renamed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from pipeline.problem import Problem
from pipeline.stages.stage import StageError, fsync, fsync_tree, locked
from runtime import artifact
from runtime.artifact import ArtifactError, BuildMetadata, hashes
from runtime.engines.trt.folders import is_checkpoint


def install_artifact(folder: Path, out: Path, metadata: BuildMetadata, cache: Path) -> Path:
    """Install an artifact at `out`, replacing the artifact there.

    An artifact there that holds the same files and was proven is left as it is, so that a repeated run changes nothing.

    Args:
        folder: its files, without metadata.
        out: where it goes.
        metadata: what is written into it, last.
        cache: where the lock is kept that two runs with the same place share.

    Raises:
        StageError: a file changed on the way, or the place cannot be written.
    """
    out = out.absolute()
    name = hashlib.sha256(str(out).encode()).hexdigest()[:32]
    try:
        locks = cache / "artifact"
        locks.mkdir(parents=True, exist_ok=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(locks / f"{name}.lock", lambda: None):
            partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
            for leftover in (partial, old):
                if leftover.exists():
                    shutil.rmtree(leftover)
            if is_installed(out, metadata):
                return out
            shutil.copytree(folder, partial)
            hashes.verify_files(partial, metadata)
            metadata.write(partial)
            fsync_tree(partial)
            atomic_replace(partial, out, old)
    except ArtifactError as error:
        raise StageError("finish", str(error), "", "run the same command with --force") from error
    except OSError as error:
        raise StageError(
            "finish", error.strerror or str(error), error.filename or out, "make room or choose another --out"
        ) from error
    return out


def install_folder(folder: Path, out: Path) -> Path:
    """Install a quantized model at `out`, replacing the quantized model there.

    Raises:
        StageError: the place cannot be written.
    """
    out = out.absolute()
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (partial, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        shutil.copytree(folder, partial)
        fsync_tree(partial)
        atomic_replace(partial, out, old)
    except OSError as error:
        raise StageError(
            "quantize", error.strerror or str(error), error.filename or out, "make room or choose another --out"
        ) from error
    return out


def out_problem(out: Path) -> Problem | None:
    """Return why a quantized model may not replace what is at `out`; none when it may."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        config = json.loads((out / "config.json").read_bytes())
    except (OSError, ValueError):
        config = {}
    if "quantization_config" in config or is_checkpoint(config):
        return None
    return Problem(
        "--out", "nothing, an empty folder or a quantized model", f"something else at {out}", "choose another"
    )


def atomic_replace(partial: Path, out: Path, old: Path) -> None:
    """Rename a complete folder to its place; what was there is moved aside first and removed last."""
    if out.exists():
        out.rename(old)
    partial.rename(out)
    fsync(out.parent)
    if old.exists():
        shutil.rmtree(old)


def is_installed(out: Path, metadata: BuildMetadata) -> bool:
    """Tell whether `out` holds this artifact already, with the same files and the same validation."""
    try:
        there = artifact.read(out)
        hashes.verify_files(out, there)
    except ArtifactError:
        return False
    ignored = {"created_at"}
    return there.model_dump(exclude=ignored) == metadata.model_dump(exclude=ignored)
