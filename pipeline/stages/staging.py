"""Folders in which something is made before it gets its name, and how those that a killed run left are told.

    PARENT/PREFIX-k3w9x0a_/made-by-yap-pipeline     for which name; written before anything else
    PARENT/PREFIX-k3w9x0a_/new/                     what is being made, or what was exchanged for it
    PARENT/PREFIX-k3w9x0a_/old/                     what was at the place, where two folders cannot be exchanged

A name alone makes nothing ours: a folder without the marker, or with anything else beside it, is not touched.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.stages.disk import fsync
from pipeline.stages.place import foreign_files

MARKER = "made-by-yap-pipeline"
PAYLOAD = ("new", "old")
_BEGINNING = b'{"made_by": "yap-pipeline", "for": '
_RANDOM = r"[a-z0-9_]{8}"


@dataclass(frozen=True, slots=True)
class Staging:
    """A folder in which something is made for a name beside it."""

    folder: Path

    @property
    def new(self) -> Path:
        """What is being made."""
        return self.folder / "new"

    @property
    def old(self) -> Path:
        """Where what was at the place waits, if two folders cannot be exchanged."""
        return self.folder / "old"


@contextmanager
def staging(place: Path, prefix: str) -> Iterator[Staging]:
    """Make a staging folder beside a place, and remove it with all that is in it, also after a failure.

    Raises:
        OSError: the folder that the place lies in cannot be written.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=place.parent))
    try:
        with (folder / MARKER).open("wb") as marker:
            # For runs that work beside this one, where the folder itself takes no lock.
            with suppress(OSError):
                fcntl.flock(marker.fileno(), fcntl.LOCK_EX)
            marker.write(marker_for(place.name))
            marker.flush()
            yield Staging(folder)
    finally:
        remove(folder)


def marker_for(name: str) -> bytes:
    """Return what the marker of a staging folder for a name holds."""
    return _BEGINNING + json.dumps(name).encode() + b"}\n"


def sweep(parent: Path, prefix: str) -> None:
    """Remove what killed runs left; what one had moved aside is put back first. The caller holds the lock.

    Raises:
        OSError: what was moved aside could not be put back.
    """
    pattern = re.compile(re.escape(prefix) + "-" + _RANDOM)
    for folder in sorted(parent.iterdir()):
        if pattern.fullmatch(folder.name) and is_ours(folder) and not is_in_use(folder):
            put_back(folder)
            remove(folder)


def is_in_use(folder: Path) -> bool:
    """Tell whether the run that made a staging folder still works in it."""
    try:
        with (folder / MARKER).open("r+b") as marker:
            fcntl.flock(marker.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no marker yet, or a file system without locks
    return False


def is_ours(folder: Path) -> bool:
    """Tell by its content whether a folder is a staging folder; one that was just made is empty, or its marker cut."""
    try:
        if folder.is_symlink() or not folder.is_dir():
            return False
        names = {path.name for path in folder.iterdir()}
        content = (folder / MARKER).read_bytes() if MARKER in names else b""
    except OSError:
        return False
    if names - {MARKER, *PAYLOAD}:
        return False
    begun = not names - {MARKER} and _BEGINNING.startswith(content[: len(_BEGINNING)])
    return begun or _name_in(content) is not None


def put_back(folder: Path) -> bool:
    """Give what was moved aside its name again, if nothing has that name; tells whether nothing waits any more.

    Raises:
        OSError: it has no name, and could not be given it.
    """
    old = folder / "old"
    if not old.is_dir():
        return True
    name = _name_in((folder / MARKER).read_bytes())
    if name is None:
        return False
    place = folder.parent / name
    with suppress(OSError):
        place.rmdir()  # an empty folder is nothing
    if not place.exists():
        old.rename(place)
        fsync(folder.parent)
    return True


def remove(folder: Path) -> None:
    """Remove a staging folder; the marker goes last, so that what a kill leaves of it is still told as ours.

    What was moved aside goes only when its place is taken, and an artifact that holds other files by now stays.
    """
    with suppress(OSError):
        if not put_back(folder):
            return
        for payload in (folder / name for name in PAYLOAD):
            if not foreign_files(payload):
                shutil.rmtree(payload, ignore_errors=True)
        if {path.name for path in folder.iterdir()} <= {MARKER}:
            (folder / MARKER).unlink(missing_ok=True)
            folder.rmdir()


def _name_in(content: bytes) -> str | None:
    """Return the name that a marker names; none when it is cut or something else."""
    try:
        document = json.loads(content)
    except ValueError:
        return None
    name = document.get("for") if isinstance(document, dict) else None
    if not isinstance(name, str) or name in {"", ".", ".."} or "/" in name:
        return None
    return name if content == marker_for(name) else None
