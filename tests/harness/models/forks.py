"""A quantizer's worker without its long start: a process that has loaded the libraries once, and forks for each job.

    python -m tests.harness.models.forks LIBRARY…        one request a line, one answer a line

`Forks.run_worker` takes the place of `pipeline.quantize.worker.run_worker`: the worker's own `main` runs, from its
file, in a process of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


class Forks:
    """The parent's side: one loaded process, ended at the end of the `with` block."""

    def __init__(self, python: Path, *libraries: str) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
        }
        self._process = subprocess.Popen(
            [str(python), "-m", "tests.harness.models.forks", *libraries],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def call(self, module: str, *arguments: str) -> tuple[int, str]:
        """Run a module's main in a fork; returns its exit code and what it wrote."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([module, *arguments]) + "\n")
        self._process.stdin.flush()
        code, log = json.loads(self._process.stdout.readline())
        return code, log

    def run_worker(self, module: str, job: Any, **_: object) -> None:
        """Run a quantize job as `worker.run_worker` does."""
        from pipeline.stages.stage import StageError

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "job.json")
            job.write(file)
            code, log = self.call(module, str(file))
        if code != 0:
            raise StageError("quantize", f"{job.method} ended with exit code {code}: {tail(log)}", job.model)


def tail(log: str) -> str:
    """Return the last lines of a log as the worker's own error has them."""
    lines = [line.rpartition("\r")[2].strip() for line in log.split("\n")]
    return " | ".join([line for line in lines if line][-12:])


def serve(answers: Any) -> None:
    """Fork for every request; the process's own side."""
    for line in sys.stdin:
        module, *arguments = json.loads(line)
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            child = os.fork()
            if child == 0:
                os._exit(_run(module, arguments, log.fileno()))
            _, status = os.waitpid(child, 0)
            log.seek(0)
            answers.write(json.dumps([os.waitstatus_to_exitcode(status), log.read()]) + "\n")
            answers.flush()


def _run(module: str, arguments: list[str], log: int) -> int:
    kept_open, _ = os.pipe()  # the worker ends when its standard input does
    os.dup2(kept_open, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print is no answer
    for library in sys.argv[1:]:
        importlib.import_module(library)
    serve(channel)
