"""Counts every call of this process that changes files under a folder, and lets one of them fail.

Python announces most of such calls to audit hooks before it makes them, whoever asks for them and whatever he imported;
a hook that raises keeps the call from being made. Writing, flushing and the exchange of two folders are not announced,
so that they are wrapped.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipeline.stages import disk

# `count`: nothing fails. `kill`: the process is gone before the call, or in the middle of a write. `full`: from the
# call on there is no room for anything. `broken`: the call alone fails, as on a failing disk.
Mode = Literal["count", "kill", "full", "broken"]

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# What takes room on a disk; a rename may as well, but the next one need not.
TAKES_ROOM = frozenset({"create", "write", "mkdir", "link"})
ANNOUNCED = {
    "os.rename": "rename",
    "os.remove": "unlink",
    "os.mkdir": "mkdir",
    "os.rmdir": "rmdir",
    "os.link": "link",
    "os.symlink": "link",
    "os.truncate": "truncate",
    "os.chmod": "chmod",
    "os.utime": "utime",
}
# In which place an event tells the folder that a relative path starts from, counted from the end.
FOLDER_AT = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.rename": 2, "os.chmod": 1, "os.utime": 1}


@dataclass
class Injector:
    """What fails, and what was called so far.

    Attributes:
        root: only what lies under it counts.
        mode: how it fails.
        at: the number of the call, from 1.
        calls: what was called: kind and path under the root.
    """

    root: Path
    mode: Mode = "count"
    at: int = 0
    exchange: bool = True
    calls: list[tuple[str, str]] = field(default_factory=list)
    full: bool = False

    def install(self) -> None:
        """Watch this process from now on; there is no way back."""
        self._real_open = io.open
        self._real_fsync, self._real_sendfile, self._real_exchange = os.fsync, os.sendfile, disk.exchange
        io.open = builtins.open = self._open  # type: ignore[assignment]
        if accessor := getattr(pathlib, "_NormalAccessor", None):
            accessor.open = staticmethod(self._open)  # Python 3.10 looks it up once
        os.fsync, os.sendfile = self._fsync, self._sendfile  # type: ignore[assignment]
        disk.exchange = self._exchange
        sys.addaudithook(self._announced)

    def call(self, kind: str, path: str, cut: Callable[[], None] | None = None) -> None:
        """Count a call, and let it fail when its turn has come.

        Args:
            kind: what is done.
            path: with what, absolute.
            cut: does the first half of it.
        """
        if path != str(self.root) and not path.startswith(f"{self.root}/"):
            return
        self.calls.append((kind, os.path.relpath(path, self.root)))
        mine = len(self.calls) == self.at
        if mine and self.mode == "kill":
            if cut:
                cut()
            os.kill(os.getpid(), signal.SIGKILL)
        self.full = self.full or (mine and self.mode == "full")
        takes_room = kind in TAKES_ROOM or (mine and kind in {"rename", "fsync"})
        if self.full and takes_room:
            if cut:
                cut()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if mine and self.mode == "broken":
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    def _announced(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = given
            if isinstance(path, int) or not isinstance(flags, int) or not flags & WRITING:
                return
            full = _absolute(path, -1)
            # A lock that is there takes no room, nor does the folder that is opened to be flushed.
            self.call("create" if flags & os.O_TRUNC or not os.path.lexists(full) else "open", full)
        elif kind := ANNOUNCED.get(event):
            at = FOLDER_AT.get(event)
            folder = given[-at] if at else -1
            full = _absolute(given[0], folder if isinstance(folder, int) else -1)
            # A folder that is there is not made, whether there is room or not.
            if kind != "mkdir" or not os.path.lexists(full):
                self.call(kind, full)

    def _open(self, file: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
        opened = self._real_open(file, mode, *given, **named)
        if set(mode) & set("wax+") and not isinstance(file, int):
            opened.write = partial(self._write, opened, opened.write, _absolute(file, -1))
        return opened

    def _write(self, file: Any, write: Callable[[Any], int], path: str, data: Any) -> int:
        def cut() -> None:
            write(data[: len(data) // 2])
            file.flush()

        self.call("write", path, cut)
        return write(data)

    def _fsync(self, handle: int) -> None:
        self.call("fsync", _opened(handle))
        self._real_fsync(handle)

    def _sendfile(self, to: int, source: int, offset: int, count: int) -> int:
        def cut() -> None:
            self._real_sendfile(to, source, offset, max(1, os.fstat(source).st_size // 2))

        # A copy ends with a call that finds nothing more.
        if offset < os.fstat(source).st_size:
            self.call("write", _opened(to), cut)
        return self._real_sendfile(to, source, offset, count)

    def _exchange(self, one: Path, other: Path) -> bool:
        if not self.exchange:
            return False
        self.call("exchange", str(other))
        return self._real_exchange(one, other)


def _opened(handle: int) -> str:
    """The path of an open file or folder."""
    return str(Path(f"/proc/self/fd/{handle}").readlink())


def _absolute(path: Any, folder: int) -> str:
    text = os.fsdecode(path)
    start = _opened(folder) if folder >= 0 else str(Path.cwd())
    return os.path.normpath(f"{start}/{text}" if not text.startswith("/") else text)
