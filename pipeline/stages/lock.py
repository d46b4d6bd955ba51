"""Locks between runs; the kernel drops one when the process that holds it ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None) -> Iterator[None]:
    """Hold an exclusive lock on a file.

    Args:
        path: the file; it is made, and stays.
        waiting: called before the wait for another process; none does not wait.

    Raises:
        BlockingIOError: another process holds it, and there was to be no waiting.
    """
    with path.open("a") as file:
        _lock(file.fileno(), waiting)
        yield


@contextmanager
def folder_locked(folder: Path, waiting: Callable[[], None] | None) -> Iterator[None]:
    """Hold an exclusive lock on a folder: for whatever cache a run works with, and without a file that would stay.

    A file system that locks files alone (NFS), and a folder that this user may enter and not read, leave runs beside
    each other: each works in a folder of its own, and the last one to finish is what stays.

    Raises:
        BlockingIOError: another process holds it, and there was to be no waiting.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        yield
        return
    try:
        try:
            _lock(handle, waiting)
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def _lock(handle: int, waiting: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            raise
        waiting()
        fcntl.flock(handle, fcntl.LOCK_EX)
