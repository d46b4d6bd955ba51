"""Where the log goes: standard output and a file that rotates. `log_writer` writes them.

Whoever configures `logging` closes every handler that there is, as vLLM does when it is imported. So `close` ends
nothing here: `end` does.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from runtime import defaults

ROTATE_BYTES = defaults.LOG_MEGABYTES * 1024 * 1024
# An output that fails is told of once in this time, and a rotation that failed is tried again after it.
AGAIN_S = 60.0

Tell = Callable[..., None]


class Output(logging.Handler):
    """One place that lines go to. A failure is told elsewhere, and never shows the record that failed."""

    def __init__(self) -> None:
        super().__init__()
        self.tell: Tell = lambda event, **fields: None
        self._lost = 0  # lines since it began to fail
        self._told_at = -AGAIN_S

    def write(self, line: str) -> None:
        """Write a line, with its end."""
        raise NotImplementedError

    def end(self) -> None:
        """Give back what is open. Nothing is written any more."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. One that cannot be formatted is told of by its logger's name alone."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - any record, whatever is in it
            line = json.dumps(
                {
                    "event": "log_record_failed",
                    "logger": record.name,
                    "level": record.levelname.lower(),
                    "error": type(error).__name__,
                }
            )
        try:
            self.write(f"{line}\n")
        except Exception as error:  # noqa: BLE001 - a full disk, a closed pipe
            self._lost += 1
            self._fail("log_output_failed", error)
        else:
            if self._lost:
                lost, self._lost = self._lost, 0
                self.tell("log_output_recovered", output=self.name or "", lost=lost)

    def _fail(self, event: str, error: Exception) -> None:
        now = time.monotonic()
        if now - self._told_at >= AGAIN_S:
            self._told_at = now
            reason = getattr(error, "strerror", None) or type(error).__name__
            self.tell(event, output=self.name or "", reason=reason)


class StandardOutput(Output):
    """The process's standard output."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "stdout"
        self._stream = sys.stdout

    def write(self, line: str) -> None:
        """Write a line, in whatever encoding there is."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()


class CompressingHandler(Output):
    """A file that is renamed when it is full, and compressed beside what is written next."""

    def __init__(self, path: Path, max_bytes: int = ROTATE_BYTES, kept: int = defaults.LOG_FILES) -> None:
        super().__init__()
        self.name = path.name  # what is told of it
        self._path = path  # the file that is written
        self._max_bytes = max_bytes  # its size at most
        self._kept = kept  # old files
        self._file = self._open()  # descriptor; -1 when closed
        self._size = os.fstat(self._file).st_size  # bytes
        self._torn = False  # the last line has no end: the disk was full
        self._owner = os.getpid()  # a forked process writes too, and leaves the names alone
        self._retry_at = 0.0  # no rotation before
        self._compressing: threading.Thread | None = None  # the last one, perhaps at its end

    def write(self, line: str) -> None:
        """Append a line, to a new file when it does not fit into this one."""
        data = line.encode("utf-8", "backslashreplace")
        if self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
        if self._torn:
            data = b"\n" + data
        written = os.write(self._file, data)
        self._size += written
        self._torn = written < len(data)
        if self._torn:
            raise OSError(28, os.strerror(28))  # what a second try would say

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _old(self, number: int, suffix: str = "") -> Path:
        return self._path.with_name(f"{self._path.name}.{number}{suffix}")

    def _rotate(self) -> None:
        now = time.monotonic()
        if now < self._retry_at or os.getpid() != self._owner:
            return
        try:
            self._wait_for_compression()
            for number in range(self._kept, 0, -1):
                for suffix in ("", ".gz"):
                    old = self._old(number, suffix)
                    with contextlib.suppress(FileNotFoundError):
                        if number == self._kept:
                            old.unlink()
                        else:
                            old.rename(self._old(number + 1, suffix))
            self._path.rename(self._old(1))
            try:
                new = self._open()
            except OSError:
                self._old(1).rename(self._path)
                raise
        except OSError as error:
            self._retry_at = now + AGAIN_S
            self._fail("log_rotation_failed", error)
            return
        os.close(self._file)
        self._file, self._size, self._torn = new, 0, False
        self._compress_later(self._old(1), self._old(1, ".gz"))

    def _compress_later(self, source: Path, target: Path) -> None:
        """Compress in a thread, once: where that fails, the file stays as it is and counts as one of those kept."""

        def compress() -> None:
            partial = target.with_name(f"{target.name}.partial")
            try:
                _compress(source, partial)
                partial.replace(target)
                source.unlink()
            except Exception as error:  # noqa: BLE001 - nobody waits for it
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                self._fail("log_compression_failed", error)

        self._compressing = threading.Thread(target=compress, name="log-compression", daemon=True)
        self._compressing.start()

    def _wait_for_compression(self) -> None:
        if self._compressing is not None:
            self._compressing.join()

    def end(self) -> None:
        """Close the file, once what is being compressed is."""
        if self._file >= 0:
            self._wait_for_compression()
            os.close(self._file)
            self._file = -1


def _compress(source: Path, target: Path) -> None:
    with source.open("rb") as plain, gzip.open(target, "wb", compresslevel=6) as packed:
        shutil.copyfileobj(plain, packed)
