"""The files of an artifact: which ones count, their hashes, and whether they are the ones that the metadata lists."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.artifact import CARD_NAME, METADATA_NAME, SIGNATURE_NAME, ArtifactError, BuildMetadata, FileEntry

# Not part of the digest: the metadata holds the digest itself, the card is prose derived from the metadata which people
# edit on the hub, the signature signs the digest, and hub clients leave bookkeeping in folders that start with a dot.
UNLISTED_NAMES = frozenset({METADATA_NAME, CARD_NAME, SIGNATURE_NAME, ".gitattributes"})


def digest_of(files: Iterable[FileEntry]) -> str:
    """One SHA-256 over the sorted list of (path, size, hash).

    >>> digest_of([]) == hashlib.sha256(b"").hexdigest()
    True
    """
    listing = "".join(f"{f.sha256}  {f.size}  {f.path}\n" for f in sorted(files, key=lambda entry: entry.path))
    return hashlib.sha256(listing.encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; memory use does not depend on the file's size."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(8 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def listed_files(folder: Path) -> Iterator[str]:
    """Relative POSIX paths of every file that belongs to the artifact, sorted.

    A link to a folder is listed as if it were a file: an artifact has none, so that it stands out.
    """
    found: list[str] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(root).relative_to(folder)
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in (*names, *links):
            path = (relative / name).as_posix()
            if path not in UNLISTED_NAMES and not name.startswith(".") and not name.endswith(".partial"):
                found.append(path)
    return iter(sorted(found))


def hash_folder(folder: Path) -> tuple[FileEntry, ...]:
    """Size and hash of every file that belongs to the artifact. Hashing runs in threads: hashlib releases the GIL."""

    def entry(path: str) -> FileEntry:
        full = folder / path
        return FileEntry(path=path, size=full.stat().st_size, sha256=sha256_of(full))

    with ThreadPoolExecutor() as pool:
        return tuple(pool.map(entry, listed_files(folder)))


def verify_files(folder: Path, metadata: BuildMetadata) -> None:
    """Compare every file with its recorded size and hash, and the digest with the list.

    Raises:
        ArtifactError: the first difference, cheapest checks first.
    """
    again = "fetch or build the artifact again"
    if digest_of(metadata.files) != metadata.digest:
        raise ArtifactError(f"{folder}: the digest in {METADATA_NAME} does not match its file list; {again}")
    recorded = {entry.path: entry for entry in metadata.files}
    if len(recorded) != len(metadata.files):
        raise ArtifactError(f"{folder}: {METADATA_NAME} lists a file twice; {again}")
    present = set(listed_files(folder))
    for path in sorted(recorded.keys() - present):
        raise ArtifactError(f"{folder}: expected the file {path}, found none; {again}")
    for path in sorted(present - recorded.keys()):
        raise ArtifactError(f"{folder}: found {path}, which {METADATA_NAME} does not list; remove it or {again}")
    for entry in metadata.files:
        size = (folder / entry.path).stat().st_size
        if size != entry.size:
            raise ArtifactError(f"{folder}/{entry.path}: expected {entry.size} bytes, found {size}; {again}")
    for found in hash_folder(folder):
        expected = recorded[found.path]
        if found != expected:
            raise ArtifactError(
                f"{folder}/{found.path}: expected SHA-256 {expected.sha256[:12]}…, found {found.sha256[:12]}…; {again}"
            )
