"""Runs each candidate's engine in a process of its own, which gets so much time and no more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.embedded.texts import heldout_texts
from pipeline.progress import Progress
from pipeline.stages.stage import StageError
from pipeline.tuning.candidates import Situation, candidates
from pipeline.tuning.choosing import Goal
from pipeline.tuning.tuner import Measured, Replies, TrialError, tune
from pipeline.tuning.worker import MOST_STREAMS, Job
from pipeline.validate.text_under_load import TextLoss, asked_of
from runtime.artifact import EngineChoices, Limits, TunedFigures, TunedOptions
from runtime.engines import EngineOptions
from runtime.engines.tuned import key_of, with_choices
from runtime.engines.vllm.caches import caches
from runtime.host.machine import Machine
from runtime.text.tokenizer import load_tokenizer

WORKER = (sys.executable, "-m", "pipeline.tuning.worker")
# A start with cold compile caches took 160 s at most, and the measuring takes less than a minute; what takes longer
# than this hangs.
TRIAL_LIMIT_S = 600.0
# The prompts of the speed test, as a conversation's are with a persona.
PROMPT_TOKENS = 480
PROJECT_ROOT = Path(__file__).resolve().parents[2]
REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class TuningRequest:
    """What is tuned, and for what.

    Attributes:
        goal: what is to become better.
        folder: the model.
        engine: what loads it.
        limits: what is baked in.
        method: how its weights are quantized.
        kv_fp8: whether a KV cache in FP8 may be tried.
    """

    goal: Goal
    folder: Path
    engine: str
    limits: Limits
    method: str
    kv_fp8: bool = False


def tune_here(request: TuningRequest, machine: Machine, scratch: Path, progress: Progress) -> TunedOptions:
    """Try the whole table on this machine.

    Args:
        scratch: an empty folder, for what compilers keep; nothing in it is needed afterwards.

    Raises:
        StageError: the plain options could not be measured, or the model has no tokenizer.
    """
    limits = request.limits
    try:
        tokenizer = load_tokenizer(request.folder)
    except ValueError as error:
        raise StageError("tune", str(error), request.folder, "choose a source that has one") from error
    texts = [list(tokenizer(text)["input_ids"]) for text in heldout_texts()]
    trials = Trials(request, texts, scratch)
    at = Situation(
        sm=machine.sm,
        method=request.method,
        streams=trials.streams,
        context=limits.max_model_len,
        kv_fp8=request.kv_fp8,
        gpus=limits.gpus,
    )
    try:
        return tune(
            request.goal,
            key_of(machine, limits),
            candidates(at),
            trial=trials.measure,
            judge=trials.judge,
            progress=progress,
        )
    except TrialError as error:
        raise StageError("tune", str(error), request.folder, "read its log above, or build with --tune off") from error


class Trials:
    """The processes of one tuning: all measure the same prompts.

    Attributes:
        request: what is tuned.
        streams: those that the speed test opens at once.
        asked: prompts and lengths of the test of the text.
        prompts: those of the speed test.
        plain: the engine's options without a choice.

    Args:
        texts: token ids of texts to make prompts of.
        scratch: folder for jobs, logs and what compilers keep.
        command: the worker; another one in tests.
        limit_s: seconds that a process gets.
    """

    def __init__(
        self,
        request: TuningRequest,
        texts: Sequence[Sequence[int]],
        scratch: Path,
        *,
        command: Sequence[str] = WORKER,
        limit_s: float = TRIAL_LIMIT_S,
    ) -> None:
        self.request, self.scratch, self.command, self.limit_s = request, scratch, command, limit_s
        limits = request.limits
        self.streams = min(limits.max_batch_size, MOST_STREAMS)
        longest_reply = max(1, min(limits.max_output_len, limits.max_model_len // 2))
        longest_prompt = max(1, min(limits.max_input_len, limits.max_model_len - longest_reply - 1))
        self.asked = tuple(asked_of(texts, self.streams, longest_prompt=longest_prompt, longest_reply=longest_reply))
        flat = [token for text in texts for token in text]
        length = min(PROMPT_TOKENS, longest_prompt)
        step = max(1, len(flat) // self.streams) | 1
        self.prompts = tuple(
            tuple(islice(cycle(flat), (number * step) % len(flat), (number * step) % len(flat) + length))
            for number in range(self.streams)
        )
        self.plain = EngineOptions(
            max_num_seqs=limits.max_batch_size,
            max_model_len=limits.max_model_len,
            tensor_parallel_size=limits.tensor_parallel_size,
            pipeline_parallel_size=limits.pipeline_parallel_size,
        )

    def measure(self, choices: EngineChoices) -> Measured:
        """Measure options.

        Raises:
            TrialError: the engine did not start, died, hung, or what it measured is none.
        """
        found = self._run(self._job("measure", with_choices(self.plain, choices)))
        try:
            runs = tuple(TunedFigures.model_validate(run) for run in found["runs"])
            replies = tuple(tuple(map(int, reply)) for reply in found["replies"])
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise TrialError(f"expected figures and replies, found {type(error).__name__}") from error
        return Measured(runs, replies)

    def judge(self, served: Replies, plain: Replies) -> TextLoss:
        """Have the plain engine without graphs say by how much less probable served replies are than plain ones.

        Raises:
            TrialError: it could not.
        """
        job = self._job("judge", replace(self.plain, enforce_eager=True))
        found = self._run(replace(job, served=tuple(map(tuple, served)), plain=tuple(map(tuple, plain))))
        try:
            return TextLoss(float(found["mean"]), float(found["worst"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TrialError(f"expected by how much replies differ, found {type(error).__name__}") from error

    def _job(self, kind: Any, options: EngineOptions) -> Job:  # noqa: ANN401 - a literal
        return Job(
            kind, self.request.folder, self.request.engine, options, self.streams, self.asked, self.prompts, Path()
        )

    def _run(self, job: Job) -> dict[str, Any]:
        """Run one job to its end, or to the end of its time, and return what it wrote."""
        with tempfile.TemporaryDirectory(prefix="trial-", dir=self.scratch) as folder:
            job_file, log_file, out = Path(folder, "job.json"), Path(folder, "log"), Path(folder, "found.json")
            replace(job, out=out).write(job_file)
            with log_file.open("wb") as log:
                process = subprocess.Popen(
                    [*self.command, str(job_file)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=os.environ | caches(self.scratch / "caches") | {"PYTHONPATH": str(PROJECT_ROOT)},
                    start_new_session=True,  # the engine's processes end with it, whatever they do
                )
            try:
                code = process.wait(self.limit_s)
            except subprocess.TimeoutExpired:
                raise TrialError(f"nothing within {self.limit_s:g} s: it was ended") from None
            finally:
                _end(process)
            if code != 0:
                raise TrialError(f"its process ended with {code}: {reason(log_file)}")
            try:
                found: dict[str, Any] = json.loads(out.read_bytes())
            except (OSError, ValueError) as error:
                raise TrialError(f"its process wrote no result ({type(error).__name__})") from error
            if not isinstance(found, dict):
                raise TrialError("its process wrote no result (not an object)")
            return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def reason(log: Path) -> str:
    """Return the last line of a log that says what went wrong: of several errors the first that is no consequence."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line and "See root cause" not in line and "EngineDead" not in line]
    return (told[-1] if told else lines[-1] if lines else "no output")[:REASON_CHARACTERS]
