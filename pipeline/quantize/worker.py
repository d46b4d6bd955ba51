"""The worker: a process that runs a quantizer in an environment of its own.

The worker is `python -m MODULE JOB.json`. It writes its progress as JSON lines on standard output, everything else on
standard error, and ends when its standard input closes: a pipeline that was killed leaves no quantizer behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pipeline.quantize import QuantizeJob
from pipeline.stages.stage import StageError

if TYPE_CHECKING:
    from pipeline.progress import Progress

PROJECT_ROOT = Path(__file__).resolve().parents[2]
TAIL_LINES = 12
# How a worker exits that refused the job.
REFUSED = 65


class WorkerProgress:
    """The worker's implementation of `Progress`: a JSON line for each call."""

    def __init__(self, channel: TextIO) -> None:
        self._channel = channel

    def step(self, message: str) -> None:
        """Begin a new step."""
        self._write({"step": message})

    def advance(self, fraction: float) -> None:
        """Tell which part of the present step is done, 0 to 1."""
        self._write({"fraction": round(min(fraction, 1.0), 4)})

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """Tell the pipeline of a refusal as what it is, one line, where another error ends in its traceback."""
        try:
            yield
        except StageError as error:
            self._write({"refused": error.what, "where": error.where, "next": error.next_step})
            sys.exit(REFUSED)

    def _write(self, line: Mapping[str, str | float]) -> None:
        self._channel.write(json.dumps(line) + "\n")
        self._channel.flush()


def run_worker(module: str, job: QuantizeJob, *, python: Path | None, progress: Progress) -> None:
    """Run a quantizer's worker to its end.

    Args:
        module: the worker's module.
        python: interpreter of the quantizer environment; none takes the running one.
        progress: told of each step.

    Raises:
        StageError: the worker refused the job, or failed; then the message ends with the last lines of its output.
    """
    # Beside its output, where a run that is killed leaves nothing that the next one does not remove.
    with tempfile.TemporaryDirectory(prefix="yap-quantize-", dir=job.out.absolute().parent) as folder:
        job_file, log_file = Path(folder, "job.json"), Path(folder, "log")
        job.write(job_file)
        with log_file.open("w+", encoding="utf-8", errors="replace", newline="") as log:
            process = subprocess.Popen(
                [str(python or sys.executable), "-m", module, str(job_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(job),
            )
            with process:
                refusal: StageError | None = None
                try:
                    for line in process.stdout or ():
                        refusal = _forward(progress, line) or refusal
                    code = process.wait()
                except BaseException:
                    process.kill()
                    raise
            if code != 0 and refusal is not None:
                raise refusal
            if code != 0:
                what = f"{job.method} ended with exit code {code}: {_tail(log)}"
                raise StageError("quantize", what, job.model, "read the last lines above, then run the same command")


def open_progress() -> WorkerProgress:
    """Take standard output for progress alone, and end with the parent process; for the worker to call."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes to standard error
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return WorkerProgress(channel)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _forward(progress: Progress, line: str) -> StageError | None:
    """Tell a worker's progress, or return its refusal."""
    message = json.loads(line)
    if "step" in message:
        progress.step(message["step"])
    if "fraction" in message:
        progress.advance(message["fraction"])
    if "refused" in message:
        return StageError("quantize", message["refused"], message["where"], message["next"])
    return None


def _environment(job: QuantizeJob) -> dict[str, str]:
    environment = dict(os.environ)
    environment |= {
        "PYTHONPATH": str(PROJECT_ROOT),  # the quantizer environment does not have the project installed
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what PyTorch asks for when CUDA has to be deterministic
        "PYTHONHASHSEED": "0",
    }
    if job.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
        # Threads that spin while they wait take the processor from those they wait for, where others use it too.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return environment


def _tail(log: TextIO) -> str:
    log.flush()
    log.seek(0)
    # Progress bars rewrite their line with carriage returns; only what they ended with counts.
    lines = [line.rpartition("\r")[2].strip() for line in log.read().split("\n")]
    return " | ".join([line for line in lines if line][-TAIL_LINES:]) or "no output"
