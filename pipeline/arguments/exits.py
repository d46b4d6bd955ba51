"""How a command ends: its exit code, and one line for what went wrong.

0 done; 1 a stage failed; 64 the request is wrong; 65 a gate failed; 70 a fault of the pipeline itself, whose traceback
lies in a file; 130 interrupted; 141 nobody reads the output any more.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import typer
import typer.core

from pipeline.problem import WrongRequestError, printable
from pipeline.stages.stage import StageError
from runtime.artifact import ArtifactError
from runtime.host import machine
from runtime.host.redaction import HIDDEN, Redactor, is_private

WRONG_REQUEST, FAILED_GATE, FAILED_STAGE, FAULT = os.EX_USAGE, os.EX_DATAERR, 1, os.EX_SOFTWARE
INTERRUPTED, UNREAD = 128 + signal.SIGINT, 128 + signal.SIGPIPE

# What a command line parser reports as wrong usage; everything else keeps its code.
PARSER_USAGE = 2


class FaultError(Exception):
    """An error that no part of the pipeline expects; its cause is the error."""


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
def exit_codes() -> Iterator[None]:
    """Turn each error into one line and its exit code."""
    _accept_any_text(sys.stdout, sys.stderr)
    try:
        try:
            yield
        finally:
            # What is still in a buffer would be written when the interpreter ends, where its failure is a traceback.
            if sys.stdout is not None:  # closed by who started it
                sys.stdout.flush()
    except WrongRequestError as error:
        for problem in error.problems:
            _say(f"error: {problem}")
        sys.exit(WRONG_REQUEST)
    except (StageError, ArtifactError) as error:
        _say(f"error: {printable(str(error))}")
        sys.exit(FAILED_STAGE)
    except KeyboardInterrupt:
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except SystemExit as error:
        if error.code == INTERRUPTED:
            _say_interrupted()
        sys.exit(WRONG_REQUEST if error.code == PARSER_USAGE else error.code)
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends in one line
        cause = error.__cause__ if isinstance(error, FaultError) and error.__cause__ else error
        if isinstance(cause, BrokenPipeError) and (unread := _unread(sys.stdout, sys.stderr)):
            for stream in unread:
                _discard(stream)
            sys.exit(UNREAD)
        _say(f"error: {fault_line(cause)}")
        sys.exit(FAULT)


def fault_line(error: BaseException, environment: Mapping[str, str] = os.environ) -> str:
    """Write an unexpected error's traceback into a file, and return one line that says what happened and where."""
    hide = _hider(environment)
    told = hide("".join(traceback.format_exception_only(type(error), error)).strip())
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    report = f"{' '.join(['yap-pipeline', *map(ascii, sys.argv[1:])])}\nPython {sys.version}\n"
    report += "".join(f"{name} {version}\n" for name, version in machine.installed_packages().items())
    report += "\n" + "".join(traceback.format_exception(type(error), error, error.__traceback__))
    line = f"the pipeline failed where it should not have: {printable(told, 300)}{place}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="yap-pipeline-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(hide(report))
    except OSError as unwritten:
        return f"{line}; its traceback could not be written ({unwritten.strerror})"
    return f"{line}; the traceback is in {file.name}, finished stages are kept"


def _hider(environment: Mapping[str, str]) -> Any:  # noqa: ANN401 - a function over texts
    """Return a function that takes secrets out of a text: those that the environment holds, and what looks like one."""
    secrets = [value for name, value in environment.items() if is_private(name) and len(value) >= 8]
    redactor = Redactor()

    def hide(text: str) -> str:
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return "\n".join(redactor.text(line) for line in text.split("\n"))

    return hide


def _accept_any_text(*streams: IO[str]) -> None:
    """Let streams write every text: what their encoding lacks is escaped, as names of files can hold anything."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            # Where something was written already, a pipe cannot be told; then it stays as it was.
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")


def _say_interrupted() -> None:
    _say("interrupted; finished stages are kept, the same command goes on from there")


def _say(line: str) -> None:
    with suppress(BrokenPipeError):
        typer.echo(line, err=True)


def _unread(*streams: IO[str]) -> list[IO[str]]:
    """Return the streams that are pipes without a reader."""
    found = []
    for stream in streams:
        with suppress(OSError, ValueError, AttributeError):
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
                found.append(stream)
    return found


def _discard(stream: IO[str]) -> None:
    """Send what a stream still holds nowhere, so that the interpreter ends without a word about it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
