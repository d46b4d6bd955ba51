"""Runs commands with faults, each in a fork of a process that has imported everything: a tenth of a second, not two.

`python -m tests.harness.faults.process` reads a request a line, and answers each with a line. `Commands` is the other
end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.harness.faults.injector import Injector, Mode

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: its exit code; negative, the signal that ended it.
        said: what it wrote to standard error.
        calls: each call that changed something: kind and path.
    """

    code: int
    said: str
    calls: tuple[tuple[str, str], ...]

    @property
    def errors(self) -> list[str]:
        """The lines that tell an error."""
        return [line for line in self.said.splitlines() if line.startswith("error:")]


# Mounts a small disk on a folder that nobody else sees, as any user may where the kernel lets him be root in a
# namespace of his own.
SMALL_DISK = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
MOUNT = 'mount -t tmpfs -o size="$1" none "$0" && shift && exec "$@"'


def small_disks() -> bool:
    """Tell whether this system lets us mount one."""
    with tempfile.TemporaryDirectory(prefix="yap-disk-") as folder:
        try:
            tried = subprocess.run([*SMALL_DISK, MOUNT, folder, "64k", "true"], capture_output=True, check=False)
        except OSError:
            return False
        return tried.returncode == 0


class Commands:
    """A process that forks for each command.

    Args:
        environment: variables of it.
        disk: a folder and a size, such as `1m`: it sees a disk of that size there.
    """

    def __init__(self, environment: Mapping[str, str], disk: tuple[Path, str] | None = None) -> None:
        before = [*SMALL_DISK, MOUNT, str(disk[0]), disk[1]] if disk else []
        self._process = subprocess.Popen(
            [*before, sys.executable, "-m", __name__],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._process:
            self._process.stdin and self._process.stdin.close()

    def seen(self, path: Path) -> Path:
        """Return a path under which others see what this process sees at one; known once it has answered."""
        return Path(f"/proc/{self._process.pid}/root{path}")

    def run(
        self,
        arguments: list[str],
        root: Path,
        environment: Mapping[str, str],
        mode: Mode = "count",
        at: int = 0,
        *,
        exchange: bool = True,
    ) -> Outcome:
        """Run a command of the pipeline whose calls count under a folder."""
        request = {
            "arguments": arguments,
            "root": str(root),
            "environment": dict(environment),
            "mode": mode,
            "at": at,
            "exchange": exchange,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Outcome(answer["code"], answer["said"], tuple(map(tuple, answer["calls"])))


def serve() -> None:
    """Answer requests until there are no more."""
    # Everything that a command imports, so that no fork does.
    import model_signing.signing  # noqa: F401

    import pipeline.publish.publishing  # noqa: F401
    from pipeline import cli
    from tests.harness.builds import standins

    for module, name, standin in standins.REPLACED:
        setattr(module, name, standin)
    _warm(cli.main)
    for line in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="yap-faults-") as folder:
            answer = _run(json.loads(line), Path(folder), cli.main)
        print(json.dumps(answer), flush=True)


def _warm(command: Any) -> None:
    """Run the command once, so that what it imports and reads of our own source is there in every fork."""
    with tempfile.TemporaryDirectory(prefix="yap-faults-") as folder:
        os.environ |= {"CALLS": f"{folder}/calls", "AWQ_CACHE_DIR": f"{folder}/cache"}
        no_exit = suppress(SystemExit)
        sys.argv = ["yap-pipeline", "run", "--cpu", "awq", "embedded", "embedded", "--out", f"{folder}/artifact"]
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere), no_exit:
            command()
        assert Path(folder, "artifact").is_dir()


def _run(request: dict[str, Any], folder: Path, command: Any) -> dict[str, Any]:
    said, calls = folder / "said", folder / "calls"
    child = os.fork()
    if child == 0:
        _child(request, said, calls, command)
    _, status = os.waitpid(child, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "said": said.read_text(errors="replace"),
        "calls": json.loads(calls.read_text()) if calls.exists() else [],
    }


def _child(request: dict[str, Any], said: Path, calls: Path, command: Any) -> None:
    """Run the command, and end this process as the interpreter would."""
    code = 0
    injector = Injector(Path(request["root"]), request["mode"], request["at"], request["exchange"])
    with said.open("w") as stream, redirect_stderr(stream), redirect_stdout(stream):
        os.environ.update(request["environment"])
        sys.argv = ["yap-pipeline", *request["arguments"]]
        injector.install()
        try:
            command()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 70
        injector.root = Path("/nothing counts any more")
        stream.flush()
    calls.write_text(json.dumps(injector.calls))
    os._exit(code)


if __name__ == "__main__":
    serve()
