"""What lies under an artifact's folder, and how one file of it is opened: without waiting, and nothing but files.

Opening a pipe waits for a writer, opening some devices does something; so what a name stands for is looked at first,
and once more when it is open. Links to files are files here: the hub's cache holds every file as one. What counts is
that the bytes behind them are the ones that the metadata lists.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.artifact.files.paths import BOOKKEEPING_FOLDERS, UNLISTED_NAMES

# What the metadata and a signature may weigh: hundreds of thousands of files.
MAX_DOCUMENT_BYTES = 64 << 20
# What a key or a token may weigh, with room for a chain of certificates or comments around it.
MAX_SECRET_BYTES = 1 << 20

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class ArtifactError(Exception):
    """The artifact cannot be used. The message is one line: expected, found, what to do.

    Names of files stand in messages, and may hold anything: what is not printed is written as an escape.
    """

    text_may_be_logged = True

    def __init__(self, message: object) -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    r"""A text with every character that is not printed written as an escape.

    >>> one_line("a\nb")
    'a\\nb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file to read, and yield its descriptor.

    Raises:
        ArtifactError: it is something else than a file, or a link to one.
        OSError: it is not there, or cannot be read.
    """
    _require_file(path, path.stat())
    # Not to wait, should it have become a pipe since.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _require_file(path, os.fstat(descriptor))
        yield descriptor
    finally:
        os.close(descriptor)


def _require_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise ArtifactError(f"{path}: expected a file, found {kind}; fetch or build the artifact again")


def read_document(path: Path, most: int = MAX_DOCUMENT_BYTES) -> bytes:
    """The bytes of a small file: the metadata, a signature.

    Raises:
        ArtifactError: it is no file, or is larger than such a file can be.
        OSError: it is not there, or cannot be read.
    """
    content = bytearray()
    with opened(path) as descriptor:
        while len(content) <= most and (block := os.read(descriptor, 1 << 20)):
            content += block
    if len(content) > most:
        raise ArtifactError(f"{path}: expected at most {most} bytes, found more; fetch or build the artifact again")
    return bytes(content)


def read_named(path: Path, most: int = MAX_SECRET_BYTES) -> bytes:
    """The bytes of a file that a variable or an option names: a key, a token, a table.

    A pipe would be waited for, and be empty when it is read again; a device may have no end.

    Raises:
        OSError: it is not there, cannot be read, is no file, or is larger than such a file can be.
    """
    try:
        return read_document(path, most)
    except ArtifactError:
        kind = KINDS.get(stat.S_IFMT(path.stat().st_mode))
        why = f"{kind}, not a file" if kind else f"more than {most} bytes"
        raise OSError(errno.EINVAL, why, str(path)) from None


def paths_under(folder: Path) -> list[str]:
    """Relative POSIX paths of everything under an artifact's folder that is no folder, sorted.

    Links to folders are among them, and so are pipes: an artifact has none, so that they stand out. Left out are what
    `UNLISTED_NAMES` and `BOOKKEEPING_FOLDERS` name, at the root alone.

    Raises:
        ArtifactError: a folder cannot be read.
    """
    found: list[str] = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    path = f"{inside}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        if path not in BOOKKEEPING_FOLDERS:
                            waiting.append(f"{path}/")
                    elif path not in UNLISTED_NAMES:
                        found.append(path)
        except OSError as error:
            raise ArtifactError(
                f"{folder / inside}: expected a folder that can be read, found: {error.strerror}; "
                "check the path and who may read it"
            ) from error
    return sorted(found)
