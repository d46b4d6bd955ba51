"""Writing that a kill or a full disk cannot leave half done: flushed, then renamed or exchanged in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from pathlib import Path

# From linux/fs.h and fcntl.h: relative names start at the working directory, and two names change places.
AT_FDCWD = -100
RENAME_EXCHANGE = 2

# What a kernel, a file system or a sandbox without the exchange answers.
NO_EXCHANGE = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})

# How libraries written in Rust (safetensors, tokenizers) word a system's error; they raise classes of their own.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; tells whether this system can, and changes nothing if not.

    Raises:
        OSError: it can, and it failed.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    rename.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def atomic_replace(new: Path, out: Path, old: Path) -> None:
    """Put a complete folder at its place in one step; what was there lies at `new` or `old` afterwards.

    Where the file system has no exchange, what was there is moved to `old` first: for a moment nothing is at the place.
    `staging.sweep` puts it back if the process ends in that moment.

    Raises:
        OSError: it failed, and what was there is there.
    """
    # A folder takes the place of nothing or of an empty folder in one step everywhere.
    if not (out.is_dir() and any(out.iterdir())):
        new.rename(out)
    elif not exchange(new, out):
        out.rename(old)
        try:
            new.rename(out)
        except BaseException:
            old.rename(out)
            raise
    fsync(out.parent)


def copy_tree(source: Path, to: Path) -> None:
    """Copy a folder's files into a new folder; the first file that cannot be copied ends it.

    Modes and times are not copied: whoever may read what this user writes may read the copies.

    Raises:
        OSError: a file could not be read or written.
    """
    to.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_dir() and not path.is_symlink():
            copy_tree(path, to / path.name)
        else:
            shutil.copyfile(path, to / path.name)


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder to disk, so that a later rename cannot reach the disk before them."""
    for root, _, names in os.walk(folder):
        for name in names:
            fsync(Path(root) / name)
        fsync(Path(root))


def fsync(path: Path) -> None:
    """Flush one file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def os_error_in(error: BaseException) -> OSError | None:
    """Return the system's refusal that an exception stands for: itself, the first of several, or one that it words."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list) and error.args[0]:
        _, where, why = error.args[0][0]
        return OSError(None, str(why), str(where))
    if isinstance(error, OSError):
        return error
    if worded := _RUST_ERROR.search(str(error)):
        code = int(worded[1])
        return OSError(code, os.strerror(code))
    return None


def refusal_text(error: OSError) -> str:
    """Return a system's refusal in one line, without the path."""
    return (error.strerror or str(error) or type(error).__name__).splitlines()[0]
