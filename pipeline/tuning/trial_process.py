"""A trial's process: a worker that gets a job, and so much time and no more; all that it started goes with it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.tuning.tuner import REASON_CHARACTERS, TrialError
from pipeline.tuning.worker import Job
from runtime.engines.vllm.caches import caches

WORKER = (sys.executable, "-m", "pipeline.tuning.worker")
PROJECT_ROOT = Path(__file__).resolve().parents[2]
# How vLLM tells its kernels in the log: by the name of a class, or of an attention backend.
KERNEL = re.compile(r"(?:Using|Selected) (\w+(?:Kernel|LinearMethod))\b|Using (\w+) attention backend\b")
# A process whose GPU hangs does not end when it is killed: the next one is tried all the same.
END_LIMIT_S = 20.0


def run(command: Sequence[str], job: Job, scratch: Path, limit_s: float) -> tuple[dict[str, Any], str]:
    """Run one job to its end, or to the end of its time, and return what it wrote, and its log.

    Args:
        command: the worker.
        scratch: folder for the job, its log and what compilers keep.
        limit_s: seconds that it gets.

    Raises:
        TrialError: it failed, took longer, or wrote no result.
    """
    with tempfile.TemporaryDirectory(prefix="trial-", dir=scratch) as folder:
        job_file, log_file, out = Path(folder, "job.json"), Path(folder, "log"), Path(folder, "found.json")
        replace(job, out=out).write(job_file)
        finish((*command, str(job_file)), log_file, scratch, limit_s)
        try:
            found: dict[str, Any] = json.loads(out.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise TrialError(f"its process wrote no result ({type(error).__name__})") from error
        if not isinstance(found, dict):
            raise TrialError("its process wrote no result (not an object)")
        return found, _read(log_file)


def finish(line: Sequence[str], log_file: Path, scratch: Path, limit_s: float) -> None:
    """Run a worker to its end; it and all that it started is gone then.

    Raises:
        TrialError: it failed, or took longer.
    """
    # vLLM tells its kernels as information.
    environment = caches(scratch / "caches") | {"PYTHONPATH": str(PROJECT_ROOT), "VLLM_LOGGING_LEVEL": "INFO"}
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | environment,
            start_new_session=True,  # the engine's processes end with it, whatever they do
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            last = reason(log_file)
            raise TrialError(f"nothing within {limit_s:.4g} s: it was ended; its log: {last}") from None
        finally:
            _end(process)
    if code != 0:
        raise TrialError(f"its process ended with {code}: {reason(log_file)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started, and wait until they hold nothing, but not for ever.

    What is killed while the GPU's driver does not answer goes on; the next trial then says so.
    """
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_LIMIT_S)
    until = time.monotonic() + END_LIMIT_S
    while _lives(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    if process.stdin is not None:
        process.stdin.close()


def _lives(group: int) -> bool:
    """Whether a process of a group lives; one that is dead and that nobody waits for holds nothing."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            state, _, member = status.read_text("utf-8", "replace").rpartition(")")[2].split()[:3]
            if member == str(group) and state not in "ZX":
                return True
    return False


def _read(log: Path) -> str:
    return log.read_text("utf-8", "replace")


def kernels_in(log: str) -> tuple[str, ...]:
    """Return the kernels that vLLM says it uses, each once.

    >>> kernels_in("Using MacheteLinearKernel for CompressedTensorsWNA16\\nUsing FLASH_ATTN attention backend")
    ('MacheteLinearKernel', 'FLASH_ATTN')
    """
    return tuple(dict.fromkeys(found[1] or found[2] for found in KERNEL.finditer(log)))


def reason(log: Path) -> str:
    """Return the last line of a log that says what went wrong: of several errors the first that is no consequence."""
    lines = [line.strip() for line in _read(log).splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and not re.search(r"\b(INFO|DEBUG)\b", line)]
    told = [line for line in errors if "See root cause" not in line and "EngineDead" not in line]
    return (told[-1] if told else lines[-1] if lines else "no output")[:REASON_CHARACTERS]
