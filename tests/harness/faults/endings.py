"""Runs commands in forks of one process, so that imports are paid once: `python -m tests.harness.faults.endings`.

Reads cases as lines of JSON, and writes how each ended as a line of JSON. What an interpreter does at its start and at
its end is done here again: standard streams over what the case says, and a last flush, whose failure is a message.
"""

from __future__ import annotations

import importlib
import json
import os
import pwd
import runpy
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn, TextIO

ROOT = Path(__file__).resolve().parents[3]
TESTS = ROOT / "tests"
# What nobody can write any more, as an interpreter says so.
UNFLUSHED = 120


@dataclass(frozen=True)
class Case:
    """One run of a command.

    Attributes:
        command: a module's name or a script's path, and its arguments.
        stdout: `pipe`, `full`, `closed`, or `unread`.
        stderr: likewise.
        adrift: whether its working directory is gone.
        variables: set for it; with None taken away.
        unknown: whether the system knows no user with our number, as in a container.
        unbuffered: whether each write goes to the system by itself.
    """

    command: tuple[str, ...]
    stdout: str = "pipe"
    stderr: str = "pipe"
    adrift: bool = False
    variables: dict[str, str | None] = field(default_factory=dict)
    unknown: bool = False
    unbuffered: bool = False


@dataclass(frozen=True)
class Ended:
    """How it ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def _connect(descriptor: int, to: str, file: Path) -> None:
    if to == "closed":
        os.close(descriptor)
        return
    if to == "unread":
        reading, there = os.pipe()
        os.close(reading)
    else:
        there = os.open("/dev/full" if to == "full" else file, os.O_WRONLY | os.O_CREAT, 0o666)
    os.dup2(there, descriptor)
    os.close(there)


def _stream(descriptor: int, name: str, *, unbuffered: bool) -> TextIO | None:
    try:
        os.fstat(descriptor)
    except OSError:
        return None
    stream = open(descriptor, "w", encoding="utf-8", closefd=False, buffering=1 if name == "<stderr>" else -1)  # noqa: SIM115
    stream.reconfigure(write_through=unbuffered)
    with suppress(AttributeError):
        stream.buffer.raw.name = name  # as the interpreter names it
    return stream


def _nobody(number: int) -> NoReturn:
    raise KeyError(f"getpwuid(): uid not found: {number}")


def _child(case: Case, folder: Path) -> int:
    for name, value in case.variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    gone = folder / "gone"
    gone.mkdir()
    os.chdir(gone)
    if case.adrift:
        gone.rmdir()
    for descriptor, to in ((1, case.stdout), (2, case.stderr)):
        _connect(descriptor, to, folder / str(descriptor))
    if case.unknown:
        pwd.getpwuid = _nobody  # type: ignore[assignment]
    sys.stdout = _stream(1, "<stdout>", unbuffered=case.unbuffered)  # type: ignore[assignment]
    sys.stderr = _stream(2, "<stderr>", unbuffered=case.unbuffered)  # type: ignore[assignment]
    program, *arguments = case.command
    sys.argv = [program, *arguments]
    try:
        if program.endswith(".py"):
            sys.path.insert(0, str(Path(program).parent))
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        code: object = 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        print("Exception ignored while flushing", file=sys.stderr)
        return UNFLUSHED
    return code if isinstance(code, int) else int(code is not None)


def run(case: Case) -> Ended:
    """Run a case in a fork."""
    with tempfile.TemporaryDirectory(prefix="yap-endings-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        if (child := os.fork()) == 0:
            code = UNFLUSHED
            try:
                code = _child(case, folder)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out, err = ((folder / part).read_text("utf-8") if (folder / part).exists() else "" for part in "12")
    return Ended(code, out, err)


def main() -> None:
    """Import what the commands need, then run a case a line."""
    for module in ("pipeline.cli", "pipeline.plan.prepare", "pipeline.publish.inspect", "runtime.cli", "rich.table"):
        importlib.import_module(module)
    for line in sys.stdin:
        found = json.loads(line)
        print(json.dumps(asdict(run(Case(**{**found, "command": tuple(found["command"])})))), flush=True)


if __name__ == "__main__":
    main()
