"""Fingerprints of files, by which a stage's output is told from one that has changed since."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runtime.artifact.hashes import sha256_of

# Size, modification time in nanoseconds, and SHA-256 of a file. The time is for people.
Fingerprint = list[Any]

# In the place of the hash of what is no file: a link that leads nowhere, a folder's link, a socket.
NO_FILE = ""


def fingerprints(folder: Path) -> dict[str, Fingerprint]:
    """Return the fingerprint of each file under a folder, by relative POSIX path.

    Hashing runs in threads: hashlib releases the GIL.
    """
    names = sorted(entries(folder))
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(lambda name: _fingerprint(folder / name), names), strict=True))


def hashes_of(files: Mapping[str, Fingerprint]) -> dict[str, str]:
    """Return the SHA-256 of each file, without size and time."""
    return {path: fingerprint[2] for path, fingerprint in files.items()}


def difference(folder: Path, recorded: Mapping[str, str]) -> str | None:
    """Return the first file that is missing, new, or of other content than was recorded; none when all is the same.

    Every byte is read: a disk that fails, and an edit that puts the time back, leave size and time as they were.
    """
    present = set(entries(folder))
    if strangers := sorted(present ^ recorded.keys()):
        return strangers[0]
    found = hashes_of(fingerprints(folder))
    return next((path for path in sorted(recorded) if found.get(path) != recorded[path]), None)


def entries(folder: Path) -> Iterator[str]:
    """Yield the relative path of everything under a folder that is no folder itself."""
    for root, folders, names in os.walk(folder):
        at = Path(root).relative_to(folder)
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        yield from ((at / name).as_posix() for name in (*names, *links))


def _fingerprint(path: Path) -> Fingerprint:
    if not path.is_file():
        return [0, 0, NO_FILE]
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, sha256_of(path)]
