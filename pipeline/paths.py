"""Paths as a person names them: whether the system takes them, and whether a folder can be made there.

A name that nobody can use is found here, before any work, and not by whatever meets it first.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path

from pipeline.problem import Problem

EXPECTED = "a path that this system takes"
# Of every file system that Linux has in use, and of the kernel.
LONGEST_NAME, LONGEST_PATH = 255, 4095
# What a made-up name keeps of the name that it is made from.
READABLE_BYTES = 80


def named(where: str, path: Path) -> Path | Problem:
    """Return the path with the home folder in place of `~`, or why the system takes none such."""
    if "\0" in str(path):  # the system raises another error of it for a name with `~`
        return Problem(where, EXPECTED, f"{path}, which holds a NUL")
    try:
        expanded = path.expanduser()
        full = str(expanded.absolute())
    except RuntimeError:
        return Problem(where, EXPECTED, f"{path}: the home folder of a user who is not known here")
    except OSError as error:
        return Problem(where, EXPECTED, f"{path}: this folder is gone ({error.strerror})", "change to another folder")
    try:
        encoded = full.encode()
    except UnicodeEncodeError:
        # Tokenizers and engines take paths in UTF-8 alone, and so do JSON files.
        return Problem(where, "a path in UTF-8", full, "rename it")
    if len(encoded) > LONGEST_PATH:
        return Problem(where, EXPECTED, f"{path}: {len(encoded)} bytes, of {LONGEST_PATH}")
    for part in expanded.parts:
        if len(part.encode()) > LONGEST_NAME:
            return Problem(where, EXPECTED, f"{part}: a name of {len(part.encode())} bytes, of {LONGEST_NAME}")
    return expanded


def is_folder(path: Path) -> bool:
    """Tell whether a folder lies at a path; what this user may not look at is none."""
    return os.path.isdir(path)  # noqa: PTH112 - `Path.is_dir` raises where it may not look


def exists(path: Path) -> bool:
    """Tell whether anything lies at a path; what this user may not look at does not."""
    return os.path.lexists(path)


def nearest(path: Path) -> Path:
    """Return what exists at a path, or nearest above it."""
    full = path.absolute()
    return next((above for above in (full, *full.parents) if exists(above)), Path("/"))


def folder_problem(where: str, folder: Path) -> Problem | None:
    """Return why a folder cannot be made, or not be written; none when it can."""
    found = nearest(folder)
    expected = "a folder that can be written"
    if not is_folder(found):
        kind = "a link to no folder" if found.is_symlink() else "a file"
        return Problem(where, expected, f"{kind} at {found}", "name another")
    if not os.access(found, os.W_OK | os.X_OK):
        remedy = "name another; in a container, `docker run --user`"
        return Problem(where, expected, f"{found}, which this user may not write", remedy)
    status = os.statvfs(found)
    if status.f_blocks == 0:
        # The kernel's own trees, /proc and /sys, call themselves writable.
        return Problem(where, expected, f"{found}, which holds no files of anybody", "name another")
    return None


def free_bytes(path: Path) -> int:
    """Return the bytes that are free where a path lies or will lie; 0 where that cannot be told."""
    try:
        status = os.statvfs(nearest(path))
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def same_file_system(one: Path, other: Path) -> bool:
    """Tell whether two paths lie, or will lie, on one file system."""
    try:
        return nearest(one).stat().st_dev == nearest(other).stat().st_dev
    except OSError:
        return False


def distinct_name(readable: str, identity: str) -> str:
    """Return a name for a folder: readable, in any alphabet, and another one for each identity.

    Args:
        readable: what a person would call it.
        identity: what tells it from all others; a hash of it is added where the readable part is not the same text.

    >>> distinct_name("llama", "llama")
    'llama'
    >>> distinct_name("my model/", "/home/me/my model")
    'my-model-e2356d68'
    """
    slug = re.sub(r"[^\w.@-]+", "-", unicodedata.normalize("NFC", readable)).strip("-.")
    slug = slug.encode("utf-8", "ignore")[:READABLE_BYTES].decode("utf-8", "ignore").rstrip("-.")
    if slug == identity:
        return slug
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{slug}-{digest}" if slug else digest
