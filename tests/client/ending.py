"""How a command ends, whatever happens: at most one line for what went wrong, and an exit code.

1 something failed; 74 standard output cannot be written; 130 interrupted; 141 nobody reads the output any more.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

INTERRUPTED, UNREAD, UNWRITTEN = 128 + signal.SIGINT, 128 + signal.SIGPIPE, os.EX_IOERR


class OutputError(Exception):
    """Standard output cannot be written, or nobody reads it. No `OSError`, which argparse would swallow."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or type(error).__name__)
        self.unread = error.errno == errno.EPIPE


class _Output(io.FileIO):
    """Standard output, whose failures are told from all others; or standard error, which loses what cannot be said."""

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() == 2 and error.errno != errno.EPIPE:
                return memoryview(data).nbytes
            raise OutputError(error) from None


@contextmanager
def ending() -> Iterator[None]:
    """Turn what may happen to any command into one line and an exit code."""
    _open_closed()
    sys.stdout, sys.stderr = _output(sys.stdout, 1), _output(sys.stderr, 2)
    try:
        try:
            yield
        finally:
            # What is still in a buffer would be written when the interpreter ends: its failure is a traceback then.
            sys.stdout.flush()
    except OutputError as error:
        if not error.unread:
            _say(f"error: standard output: expected that it can be written, found: {error}")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)  # what a buffer still holds
        sys.exit(UNREAD if error.unread else UNWRITTEN)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except FileNotFoundError as error:
        if error.filename is not None or not _is_adrift():
            raise
        _say("error: the working directory: expected a folder, found that it was removed; change to another one")
        sys.exit(1)


def _open_closed() -> None:
    """Let a stream that was closed by who started us go nowhere: else the next file that is opened gets its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _output(stream: Any, descriptor: int) -> Any:
    """A standard stream as it is, but for its failures, and for texts that its encoding lacks: they are escaped."""
    if not isinstance(stream, io.TextIOWrapper) or stream.name not in {"<stdout>", "<stderr>"}:
        return stream
    raw = _Output(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _is_adrift() -> bool:
    """Tell whether the working directory is gone."""
    try:
        Path.cwd()
    except OSError:
        return True
    return False


def _say(line: str) -> None:
    with suppress(OSError, ValueError, OutputError):
        print(line, file=sys.stderr, flush=True)
