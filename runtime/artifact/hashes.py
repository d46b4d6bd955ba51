"""The files of an artifact: which ones count, their hashes, and whether they are the ones that the metadata lists."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.artifact import METADATA_NAME, ArtifactError, BuildMetadata, FileEntry
from runtime.artifact.files import hasher
from runtime.artifact.files.opening import opened, paths_under
from runtime.artifact.files.paths import listing_problem, path_problem
from runtime.artifact.files.proof import AGAIN, expected_hash, unreadable
from runtime.artifact.files.references import names_others, reference_problem

BLOCK_BYTES = 8 << 20

# Reads an open file to its end, and returns its SHA-256: what it does beside that is its own affair. None where it will
# prove the file itself, later.
Take = Callable[[FileEntry, int], str | None]


def digest_of(files: Iterable[FileEntry]) -> str:
    """One SHA-256 over the sorted list of (path, size, hash).

    >>> digest_of([]) == hashlib.sha256(b"").hexdigest()
    True
    """
    listing = "".join(f"{f.sha256}  {f.size}  {f.path}\n" for f in sorted(files, key=lambda entry: entry.path))
    return hashlib.sha256(listing.encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; memory use does not depend on the file's size."""
    with path.open("rb") as file:
        found = hashlib.sha256()
        while block := file.read(BLOCK_BYTES):
            found.update(block)
        return found.hexdigest()


def sha256_of_open(entry: FileEntry, descriptor: int) -> str:
    """SHA-256 of an open file, of which no more is read than one byte beside what is listed."""
    return hasher.sha256_of(descriptor, entry.size)


def blocks_of(entry: FileEntry, descriptor: int) -> Iterator[bytes]:
    """The bytes of an open file, from its start; no more than one byte beside what is listed."""
    at = 0
    while block := os.pread(descriptor, min(BLOCK_BYTES, entry.size + 1 - at), at):
        yield block
        at += len(block)
        if at > entry.size:
            return


def listed_files(folder: Path) -> Iterator[str]:
    """Relative POSIX paths of everything under an artifact's folder that is no folder and must be listed, sorted.

    Raises:
        ArtifactError: a folder cannot be read.
    """
    return iter(paths_under(folder))


def hash_folder(folder: Path) -> tuple[FileEntry, ...]:
    """Size and hash of every file that belongs to the artifact. Hashing runs in threads: hashlib releases the GIL.

    Raises:
        ArtifactError: there is something else than files, or a name that an artifact cannot list.
    """

    def entry(path: str) -> FileEntry:
        if problem := path_problem(path):
            raise ArtifactError(f"{folder}: found the file {path}, whose path is {problem}; remove or rename it")
        try:
            with opened(folder / path) as descriptor:
                size = os.fstat(descriptor).st_size
                unhashed = FileEntry(path=path, size=size, sha256="0" * 64)
                return unhashed.model_copy(update={"sha256": sha256_of_open(unhashed, descriptor)})
        except OSError as error:
            raise ArtifactError(
                f"{folder}/{path}: expected a file that can be read, found: {error.strerror}; remove it"
            ) from error

    paths = list(listed_files(folder))
    with ThreadPoolExecutor() as pool:
        found = tuple(pool.map(entry, paths))
    if problem := listing_problem(paths):
        raise ArtifactError(f"{folder}: an artifact with these files {problem}; remove or rename one")
    return found


def verify_files(folder: Path, metadata: BuildMetadata, take: Take = sha256_of_open) -> None:
    """Compare every file with its recorded size and hash, and the digest with the list.

    Args:
        take: reads each file, and may keep what it read: so that what was compared is what is used.

    Raises:
        ArtifactError: the first difference, cheapest checks first.
    """
    if digest_of(metadata.files) != metadata.digest:
        raise ArtifactError(f"{folder}: the digest in {METADATA_NAME} does not match its file list; {AGAIN}")
    recorded = {entry.path for entry in metadata.files}
    present = set(listed_files(folder))
    for path in sorted(recorded - present):
        raise ArtifactError(f"{folder}: expected the file {path}, found none; {AGAIN}")
    for path in sorted(present - recorded):
        raise ArtifactError(f"{folder}: found {path}, which {METADATA_NAME} does not list; remove it or {AGAIN}")

    def opened_and(do: Callable[[FileEntry, int], None], entry: FileEntry) -> None:
        try:
            with opened(folder / entry.path) as descriptor:
                do(entry, descriptor)
        except OSError as error:
            raise unreadable(f"{folder}/{entry.path}", error) from error

    def same_size(entry: FileEntry, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if size != entry.size:
            raise ArtifactError(f"{folder}/{entry.path}: expected {entry.size} bytes, found {size}; {AGAIN}")

    def same_hash(entry: FileEntry, descriptor: int) -> None:
        if names_others(entry.path):
            content = b"".join(blocks_of(entry, descriptor))
            same = hashlib.sha256(content).hexdigest() == entry.sha256  # other bytes are told below
            if same and (problem := reference_problem(entry.path, content, recorded)):
                raise ArtifactError(
                    f"{folder}/{entry.path}: expected nothing outside of the artifact, found {problem}; {AGAIN}"
                )
        found = take(entry, descriptor)
        if found is not None and found != entry.sha256:
            raise expected_hash(f"{folder}/{entry.path}", entry, found)

    for entry in metadata.files:
        opened_and(same_size, entry)
    with ThreadPoolExecutor() as pool:
        try:
            for _ in pool.map(lambda entry: opened_and(same_hash, entry), metadata.files):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the rest need not be read
            raise
