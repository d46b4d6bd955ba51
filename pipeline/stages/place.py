"""The place that a finished folder goes to, and what may be replaced there: only what the pipeline made itself.

What is ours is told by content. An artifact is ours as far as its own metadata lists its files; a quantized model, when
every file of it is one that a stage in this cache recorded. Everything else belongs to somebody.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from pipeline import paths
from pipeline.problem import Problem
from pipeline.stages.fingerprints import entries
from runtime import artifact
from runtime.artifact import METADATA_NAME, SIGNATURE_NAME, ArtifactError
from runtime.artifact.hashes import sha256_of

# What `validate` and `sign` write into an artifact, and what a kill leaves of it.
WRITTEN_LATER = frozenset(
    {METADATA_NAME, SIGNATURE_NAME, f"{METADATA_NAME}.partial", f"{SIGNATURE_NAME}.partial"},
)
# Documents in which nothing stands, so that nothing is lost with them.
NOTHING_SAID = (b"", b"{}")
# Folder of the cache with a record of each quantized model that was put somewhere; a stage's own may be made anew.
PLACED = "placed"
NAMES_TOLD = 3
OTHER = "choose another --out"


def locate(out: Path) -> Path:
    """Return where `out` lies when every link is followed: what is behind a link is replaced, and the link stays.

    Raises:
        OSError, RuntimeError, ValueError: it leads nowhere: links in a circle, or the home of an unknown user.
    """
    return out.expanduser().resolve()


def artifact_problem(out: Path, cache: Path | None = None) -> Problem | None:
    """Return why an artifact may not be put at `out`; none when it may.

    Args:
        out: what `--out` names.
        cache: the folder of finished stages, which may neither hold the place nor lie in it.
    """
    return _problem(out, cache, _artifact_refusal, "an empty folder, an artifact or nothing")


def model_problem(out: Path, cache: Path) -> Problem | None:
    """Return why a quantized model may not be put at `out`; none when it may."""
    return _problem(out, cache, partial(_model_refusal, cache=cache), "nothing, an empty folder or a quantized model")


def write_problem(artifact_folder: Path) -> Problem | None:
    """Return why nothing can be written into an artifact; none when something can, or when it is not there."""
    if not paths.is_folder(artifact_folder) or os.access(artifact_folder, os.W_OK | os.X_OK):
        return None
    return Problem("ARTIFACT", "a folder that this user may write", str(artifact_folder), "copy it to one that is")


def foreign_files(folder: Path) -> list[str]:
    """Return what lies in an artifact's folder and is not of it, by relative path; a folder of such files as one.

    Empty where the folder is no artifact: then nothing can be told.
    """
    try:
        metadata = artifact.read(folder)
    except ArtifactError:
        return []
    return sorted(_others(folder, {entry.path for entry in metadata.files} | WRITTEN_LATER))


def _problem(
    out: Path, cache: Path | None, refusal: Callable[[Path, Path], str | None], expected: str
) -> Problem | None:
    try:
        place = locate(out)
        if os.path.lexists(place) and not place.is_dir():
            return Problem("--out", "a folder, or nothing", f"a file at {out}", OTHER)
        if _holds_anything(place) and (found := refusal(place, out)):
            return Problem("--out", expected, found, OTHER)
        found = _where_refusal(place, cache)
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        where = getattr(error, "filename", None) or out
        return Problem("--out", "a folder, or nothing", f"what cannot be read at {where} ({reason})", OTHER)
    return Problem("--out", "a place where a folder can be put", found, OTHER) if found else None


def _holds_anything(place: Path) -> bool:
    if not place.is_dir():
        return False
    with os.scandir(place) as found:
        return next(found, None) is not None


def _where_refusal(place: Path, cache: Path | None) -> str | None:
    """Return why nothing can be put at a place, whatever lies there."""
    inside = f"name a folder in it, such as {place / 'artifact'}"
    if os.path.ismount(place):
        return f"{place}, where a file system begins; {inside}"
    if place == _home():
        return f"{place}, the home folder; {inside}"
    if place in _working_folders():
        return f"{place}, which this command runs in; {inside}"
    if cache is not None and ((folder := cache.expanduser().resolve()) == place or place in folder.parents):
        return f"{place}, which holds the cache {folder}"
    if cache is not None and folder in place.parents:
        return f"{place}, which lies in the cache {folder}"
    if holder := next((above for above in place.parents if _is_artifact(above)), None):
        return f"{place}, which lies in the artifact {holder}"
    if unusable := paths.folder_problem("--out", place.parent):
        return unusable.found
    for folder in (paths.nearest(place.parent), place):
        if folder.is_dir() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return f"{folder}, which this user may not read and write"
    if place.is_dir() and _is_protected(place):
        return f"{place}, which belongs to another user"
    return None


def _is_protected(place: Path) -> bool:
    """Tell whether only its owner may rename a folder: in a folder such as /tmp."""
    status, above = place.stat(), place.parent.stat()
    return bool(above.st_mode & stat.S_ISVTX) and os.geteuid() not in {0, status.st_uid, above.st_uid}


def _working_folders() -> list[Path]:
    """Return the folder that this process runs in, and those that hold it."""
    try:
        here = Path.cwd().resolve()
    except OSError:
        return []  # it was removed
    return [here, *here.parents]


def _home() -> Path | None:
    try:
        return Path.home().resolve()
    except (OSError, RuntimeError):
        return None


def _is_artifact(folder: Path) -> bool:
    try:
        artifact.read(folder)
    except ArtifactError:
        return False
    return True


def _artifact_refusal(place: Path, out: Path) -> str | None:
    """Return what lies at a place that no artifact may replace; none when all of it is an artifact's own."""
    if not (place / METADATA_NAME).is_file():
        return f"other files in {out} ({_named(path.name for path in place.iterdir())})"
    try:
        metadata = artifact.read(place)
    except ArtifactError:
        alone = [path.name for path in place.iterdir()] == [METADATA_NAME]
        if alone and (place / METADATA_NAME).read_bytes().strip() in NOTHING_SAID:
            return None
        return f"a {METADATA_NAME} in {out} that the pipeline did not write"
    if others := sorted(_others(place, {entry.path for entry in metadata.files} | WRITTEN_LATER)):
        return f"files in {out} that its metadata does not list ({_named(others)})"
    return None


def _model_refusal(place: Path, out: Path, cache: Path) -> str | None:
    """Return what lies at a place that no quantized model may replace; none when a stage in the cache made it all."""
    recorded = recorded_hashes(cache / "quantize", cache / PLACED)
    paths = {name: place / name for name in entries(place)}
    strangers = [name for name, path in paths.items() if not path.is_file() or sha256_of(path) not in recorded]
    return f"something else at {out}, which this cache did not make ({_named(strangers)})" if strangers else None


def recorded_hashes(*homes: Path) -> frozenset[str]:
    """Return the SHA-256 of every file that records in some folders of the cache list; one that is cut is skipped."""
    found: set[str] = set()
    for path in (path for home in homes for path in home.glob("*/record.json")):
        try:
            found.update(fingerprint[2] for fingerprint in json.loads(path.read_bytes())["files"].values())
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            continue
    return frozenset(found)


def _others(folder: Path, listed: set[str]) -> Iterator[str]:
    """Relative paths of what is not listed; a folder without anything listed in it is told once, and not at all when
    there is no file in it."""
    parents = {"/".join(path.split("/")[:depth]) for path in listed for depth in range(1, path.count("/") + 1)}
    for root, folders, names in os.walk(folder, onerror=_raise):
        at = Path(root).relative_to(folder)
        for name in list(folders):
            path = (at / name).as_posix()
            if (Path(root) / name).is_symlink():
                yield path
            elif path not in parents:
                folders.remove(name)
                if _holds_files(Path(root) / name):
                    yield path + "/"
        yield from (path for name in names if (path := (at / name).as_posix()) not in listed)


def _holds_files(folder: Path) -> bool:
    return any(
        names or any((Path(root) / name).is_symlink() for name in folders)
        for root, folders, names in os.walk(folder, onerror=_raise)
    )


def _raise(error: OSError) -> None:
    raise error


def _named(paths: Iterable[str]) -> str:
    """Return the first names of a list, and how many there are more."""
    names = sorted(paths)
    more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
    return ", ".join(names[:NAMES_TOLD]) + more
