"""The trials of one tuning: what each is asked, and what is made of its answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from pipeline.embedded.texts import heldout_texts
from pipeline.progress import Progress
from pipeline.stages.stage import StageError
from pipeline.tuning import trial_process
from pipeline.tuning.budget import Budget
from pipeline.tuning.candidates import Situation, candidates
from pipeline.tuning.choosing import Goal
from pipeline.tuning.trial_process import WORKER
from pipeline.tuning.tuner import Measured, Replies, TrialError, tune
from pipeline.tuning.worker import MOST_STREAMS, Job
from pipeline.validate.text_under_load import TextLoss, asked_of
from runtime.artifact import EngineChoices, Limits, TunedFigures, TunedOptions
from runtime.defaults import TUNE_MINUTES
from runtime.engines import EngineOptions
from runtime.engines.tuned import key_of, with_choices
from runtime.host.machine import Machine
from runtime.text.tokenizer import load_tokenizer

# A start with cold compile caches took 160 s at most, and the measuring takes less than a minute; what takes longer
# than this hangs.
TRIAL_LIMIT_S = 600.0
# The prompts of the speed test, as a conversation's are with a persona.
PROMPT_TOKENS = 480
# A long history that no cache has: several steps of the scheduler.
LONG_TOKENS = 4096
# Architectures whose layers norm queries and keys.
WITH_QK_NORM = ("qwen3", "gemma3", "olmo2", "olmo3")


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
        minutes: that it may take.
    """

    goal: Goal
    folder: Path
    engine: str
    limits: Limits
    method: str
    kv_fp8: bool = False
    minutes: float = TUNE_MINUTES


def tune_here(request: TuningRequest, machine: Machine, scratch: Path, progress: Progress) -> TunedOptions:
    """Try the whole table on this machine.

    Args:
        scratch: an empty folder, for what compilers keep; nothing in it is needed afterwards.

    Raises:
        StageError: the plain options could not be measured, or the model has no tokenizer.
    """
    budget = Budget(60 * request.minutes)
    trials = trials_of(request, scratch, budget)
    try:
        return tune(
            request.goal,
            key_of(machine, request.limits),
            candidates(situation(request, machine, trials.streams)),
            trial=trials.measure,
            judge=trials.judge,
            progress=progress,
            budget=budget,
        )
    except TrialError as error:
        raise StageError("tune", str(error), request.folder, "read its log above, or build with --tune off") from error


def trials_of(request: TuningRequest, scratch: Path, budget: Budget) -> Trials:
    """Return the processes that measure what is asked for, with texts that the package carries.

    Raises:
        StageError: the model has no tokenizer.
    """
    try:
        tokenizer = load_tokenizer(request.folder)
    except ValueError as error:
        raise StageError("tune", str(error), request.folder, "choose a source that has one") from error
    texts = [list(tokenizer(text)["input_ids"]) for text in heldout_texts()]
    return Trials(request, texts, scratch, budget=budget)


def situation(request: TuningRequest, machine: Machine, streams: int) -> Situation:
    """Return what decides which candidates there are."""
    limits = request.limits
    return Situation(
        sm=machine.sm,
        method=request.method,
        streams=streams,
        sequences=limits.max_batch_size,
        context=limits.max_model_len,
        kv_fp8=request.kv_fp8,
        gpus=limits.gpus,
        qk_norm=_norms_queries(request.folder),
    )


def _norms_queries(folder: Path) -> bool:
    """Whether a model norms queries and keys of each head, by what its architecture is called.

    A model that does and is not known costs a pass that is not tried; one that does not costs a trial.
    """
    try:
        model = json.loads((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(model, str) and model.startswith(WITH_QK_NORM)


class Trials:
    """The processes of one tuning: all measure the same prompts.

    Attributes:
        request: what is tuned.
        streams: those that the speed test opens at once.
        asked: prompts and lengths of the test of the text.
        prompts: those of the speed test.
        long: its long one.
        plain: the engine's options without a choice.

    Args:
        texts: token ids of texts to make prompts of.
        scratch: folder for jobs, logs and what compilers keep.
        command: the worker; another one in tests.
        limit_s: seconds that a process gets at most.
        budget: says how many of them it gets now.
    """

    def __init__(
        self,
        request: TuningRequest,
        texts: Sequence[Sequence[int]],
        scratch: Path,
        *,
        command: Sequence[str] = WORKER,
        limit_s: float = TRIAL_LIMIT_S,
        budget: Budget | None = None,
    ) -> None:
        self.budget = budget or Budget()
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
        self.long = tuple(islice(cycle(flat), min(LONG_TOKENS, longest_prompt)))
        self.plain = EngineOptions(
            max_num_seqs=limits.max_batch_size,
            max_model_len=limits.max_model_len,
            tensor_parallel_size=limits.tensor_parallel_size,
            pipeline_parallel_size=limits.pipeline_parallel_size,
        )

    def measure(self, choices: EngineChoices) -> Measured:
        """Measure what options make of speed, in a process of their own.

        Raises:
            TrialError: the engine did not start, died, hung, or what it measured is none.
        """
        found, log = self._run(self._job("measure", with_choices(self.plain, choices)))
        try:
            runs = tuple(TunedFigures.model_validate(run) for run in found["runs"])
            replies = tuple(tuple(map(int, reply)) for reply in found["replies"])
        except Exception as error:  # whatever a broken engine's process may write
            raise TrialError(f"expected figures and replies, found {type(error).__name__}") from error
        return Measured(runs, replies, trial_process.kernels_in(log))

    def judge(self, served: Replies, plain: Replies) -> TextLoss:
        """Have the plain engine without graphs say by how much less probable served replies are than plain ones.

        Raises:
            TrialError: it could not.
        """
        job = self._job("judge", replace(self.plain, enforce_eager=True))
        found, _ = self._run(replace(job, served=tuple(map(tuple, served)), plain=tuple(map(tuple, plain))))
        try:
            loss = TextLoss(float(found["mean"]), float(found["worst"]))
        except Exception as error:
            raise TrialError(f"expected by how much replies differ, found {type(error).__name__}") from error
        if not (loss.mean >= 0 and loss.worst >= 0):
            raise TrialError(f"expected by how much less probable replies are, found {loss.mean:g} and {loss.worst:g}")
        return loss

    def _job(self, kind: Any, options: EngineOptions) -> Job:  # noqa: ANN401 - a literal
        asked = self.request
        return Job(kind, asked.folder, asked.engine, options, self.streams, self.asked, self.prompts, self.long, Path())

    def _run(self, job: Job) -> tuple[dict[str, Any], str]:
        return trial_process.run(self.command, job, self.scratch, min(self.limit_s, self.budget.limit_s))
