"""How a command ends, whatever happens: one line for what went wrong, its exit code, and no traceback.

64 the request is wrong; 70 a fault of the program itself, whose traceback lies in a file; 74 standard output cannot be
written; 130 interrupted; 141 nobody reads the output any more. Both programs end so.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer.core

from runtime.host import machine
from runtime.host.redaction.private_fields import HIDDEN, is_private
from runtime.host.redaction.redactor import Redactor

WRONG_REQUEST, FAULT, UNWRITTEN = os.EX_USAGE, os.EX_SOFTWARE, os.EX_IOERR
INTERRUPTED, UNREAD = 128 + signal.SIGINT, 128 + signal.SIGPIPE

# What a command line parser reports as wrong usage; everything else keeps its code.
PARSER_USAGE = 2

LONGEST = 300
GONE = "the working directory: expected a folder, found that it was removed; change to another one"


class FaultError(Exception):
    """An error that no part of the program expects; its cause is the error."""


class OutputError(Exception):
    """Standard output cannot be written, or nobody reads it. No `OSError`: a parser or a library would take that."""

    def __init__(self, error: OSError, descriptor: int) -> None:
        self.strerror = error.strerror or type(error).__name__
        super().__init__(self.strerror)
        self.unread = error.errno == errno.EPIPE
        self.descriptor = descriptor


class _Told(io.FileIO):
    """A standard stream whose failures are told from all others.

    What cannot be written of messages is dropped, because the exit code counts; nobody waits for a reader that left.
    """

    def __init__(self, descriptor: int, *, messages: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._messages = messages

    def write(self, data: Any, /) -> int | None:  # type: ignore[override]  # noqa: ANN401 - what a buffer hands on
        """Write what the system takes of it."""
        try:
            return super().write(data)
        except OSError as error:
            if self._messages and error.errno != errno.EPIPE:
                return memoryview(data).nbytes
            raise OutputError(error, self.fileno()) from None


class CommandGroup(typer.core.TyperGroup):
    """The commands, whose unexpected errors come out as they are.

    The parser would end the process without a word for any broken pipe and any end of a file, a library's included.
    """

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - the parser's own types are private
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except (EOFError, OSError) as error:
            raise FaultError from error


@contextmanager
def ending(program: str, *, prefix: str, part: str, kept: str = "") -> Iterator[None]:
    """Turn every end of a command into at most one line and its exit code.

    Args:
        program: as it is typed; the file with a traceback is named after it.
        prefix: what a line begins with.
        part: what failed where nobody expected it to.
        kept: what a fault leaves usable.
    """
    with _standard_streams():
        try:
            try:
                yield
            finally:
                # What is still in a buffer would be written when the interpreter ends: its failure is a traceback then.
                sys.stdout.flush()
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except SystemExit as error:
            sys.exit(WRONG_REQUEST if error.code == PARSER_USAGE else error.code)
        except OutputError as error:
            _end_unwritten(error, prefix)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends in one line
            cause = error.__cause__ if isinstance(error, FaultError) and error.__cause__ else error
            if isinstance(cause, FileNotFoundError) and is_adrift():
                say(f"{prefix}{GONE}")
                sys.exit(WRONG_REQUEST)
            say(f"{prefix}{fault_line(cause, program=program, part=part, kept=kept)}")
            sys.exit(FAULT)


def _end_unwritten(error: OutputError, prefix: str) -> NoReturn:
    """Leave quietly where nobody reads, and say so where nothing can be written."""
    if not error.unread:
        say(f"{prefix}standard output: expected that it can be written, found: {error}")
    _discard(error.descriptor)
    sys.exit(UNREAD if error.unread else UNWRITTEN)


def say(line: str) -> None:
    """Write a line to standard error, where that is possible."""
    with suppress(OutputError, OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def drop_unwritten() -> None:
    """Drop what standard output would not take, for a program whose output is its log: its exit code stands."""
    try:
        sys.stdout.flush()
    except (OutputError, OSError, ValueError):
        _discard(1)


def fault_line(
    error: BaseException, environment: Mapping[str, str] = os.environ, *, program: str, part: str, kept: str = ""
) -> str:
    """Write an unexpected error's traceback into a file, and return one line that says what happened and where."""
    hide = _hider(environment)
    told = hide("".join(traceback.format_exception_only(type(error), error)).strip())
    told = " ".join("".join(letter if letter.isprintable() else " " for letter in told).split())
    told = told if len(told) <= LONGEST else f"{told[: LONGEST - 1]}…"
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    report = f"{' '.join([program, *map(ascii, sys.argv[1:])])}\nPython {sys.version}\n"
    report += "".join(f"{name} {version}\n" for name, version in machine.installed_packages().items())
    report += "\n" + "".join(traceback.format_exception(type(error), error, error.__traceback__))
    line = f"the {part} failed where it should not have: {told}{place}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"{program}-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(hide(report))
    except OSError as unwritten:
        return f"{line}; its traceback could not be written ({unwritten.strerror})"
    return f"{line}; the traceback is in {file.name}" + (f", {kept}" if kept else "")


def _hider(environment: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that takes secrets out of a text: those that the environment holds, and what looks like one."""
    secrets = [value for name, value in environment.items() if is_private(name) and len(value) >= 8]
    redactor = Redactor()

    def hide(text: str) -> str:
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return "\n".join(redactor.text(line) for line in text.split("\n"))

    return hide


@contextmanager
def _standard_streams() -> Iterator[None]:
    """Have standard streams that are there, take every text, and tell when they fail.

    A stream that was closed by who started us is one that goes nowhere. The next file that is opened would get its
    number, and whatever a native library prints would go into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    before = sys.stdout, sys.stderr
    sys.stdout = _told(sys.stdout, 1, messages=False)
    sys.stderr = _told(sys.stderr, 2, messages=True)
    made = sys.stdout, sys.stderr
    try:
        yield
    finally:
        for stream in made:
            with suppress(OutputError, OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _told(stream: TextIO | None, descriptor: int, *, messages: bool) -> TextIO:
    """Return a stream over the same descriptor; one that is no descriptor's, such as a test's, stays what it is."""
    if stream is None:  # closed by who started us
        return Path(os.devnull).open("w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper) or not _is_at(stream, descriptor):
        if isinstance(stream, io.TextIOWrapper):
            # Where something was written already, a pipe cannot be told; then it stays as it was.
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")
        return stream
    with suppress(OSError):
        stream.flush()
    raw = _Told(descriptor, messages=messages)
    # Names of files can hold anything: what the encoding lacks is escaped.
    made = io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering or messages,
        write_through=stream.write_through,
    )
    made.mode = stream.mode  # type: ignore[misc]
    return made


def _is_at(stream: io.TextIOWrapper, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False


def is_adrift() -> bool:
    """Tell whether the working directory is gone."""
    try:
        os.getcwd()  # noqa: PTH109 - `Path.cwd` does the same
    except OSError:
        return True
    return False


def _discard(descriptor: int) -> None:
    """Send what a stream still holds nowhere, so that the interpreter ends without a word about it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
