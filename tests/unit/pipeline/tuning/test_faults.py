"""Whatever happens to one candidate costs it alone: scripted faults of every kind, at every place."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.progress import PlainProgress
from pipeline.tuning import trial_process
from pipeline.tuning.candidates import Candidate
from pipeline.tuning.trials import Trials, TuningRequest
from pipeline.tuning.tuner import BASE, BASE_AGAIN, PLAIN, Measured, Replies, TrialError, tune
from pipeline.validate.text_under_load import TextLoss
from runtime.artifact import EngineChoices, Limits, TunedFigures, TunedOptions, TuningKey

KEY = TuningKey(engine="vllm 1", torch="2", driver="5", gpu="H", gpu_memory_bytes=1, tensor_parallel_size=1)
LIMITS = Limits(max_batch_size=4, max_input_len=100, max_output_len=50, max_model_len=160)
TABLE = [Candidate(f"c{number}", EngineChoices(max_num_batched_tokens=number)) for number in range(1, 6)]

ERRORS: list[Exception] = [
    TrialError("its process ended with -9: no output"),
    TrialError(""),
    ImportError("no module named flashinfer"),
    OSError(28, "No space left on device"),
    MemoryError(),
    RuntimeError("CUDA error: no kernel image is available\n\x1b[31mhere"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    RecursionError(),
    KeyError(3),
    ZeroDivisionError(),
    AssertionError("\udcff\u202e" * 400),
    NotImplementedError(),
    EOFError(),
]


def measured(part: float) -> Measured:
    run = TunedFigures(itl_ms=4 * part, ttft_ms=50 * part, tokens_per_s=9000 / part, ttft_one_ms=20 * part)
    return Measured((run, run, run), ((1,),))


EXTREME = st.sampled_from([5e-324, 1e-300, 1e-9, 1e-4, 1.0, 1e9, 1e300, sys.float_info.max])
WILD = st.builds(
    lambda itl, ttft, tokens, one: Measured(
        (TunedFigures(itl_ms=itl, ttft_ms=ttft, tokens_per_s=tokens, ttft_one_ms=one),) * 2, ((2,),)
    ),
    EXTREME,
    EXTREME,
    EXTREME,
    st.one_of(st.none(), EXTREME),
)
FAULTS = st.one_of(st.sampled_from(ERRORS), WILD, st.just(Measured((), ())))
JUDGED = st.one_of(
    st.sampled_from(ERRORS),
    st.builds(TextLoss, st.sampled_from([0.0, 9.0, math.inf, math.nan]), st.sampled_from([0.0, 9.0, math.nan])),
)


def plausible(answer: Measured) -> bool:
    values = [value for run in answer.runs for value in run.model_dump().values() if value is not None]
    return bool(values) and all(1e-4 <= value <= 1e9 for value in values)


class Script:
    """Answers by the candidate; the plain options' one after the other."""

    def __init__(self, answers: list[Measured | Exception], again: Measured | Exception, judged: list[Any]) -> None:
        self.answers, self.plain, self.judged = answers, [measured(1.0), again], judged
        self.passed: list[Replies] = []

    def trial(self, choices: EngineChoices) -> Measured:
        number = choices.max_num_batched_tokens
        answer = self.plain.pop(0) if choices == PLAIN else self.answers[(number or 1) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def judge(self, served: Replies, plain: Replies) -> TextLoss:
        answer = self.judged.pop(0) if self.judged else TextLoss(0.0, 0.0)
        if isinstance(answer, Exception):
            raise answer
        if answer.passed:
            self.passed.append(served)
        return answer

    def tune(self) -> TunedOptions:
        progress = PlainProgress(io.StringIO())
        return tune("latency", KEY, TABLE, trial=self.trial, judge=self.judge, progress=progress)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(FAULTS, st.just(measured(0.7))), min_size=5, max_size=5),
    st.one_of(st.just(measured(1.0)), FAULTS),
    st.lists(JUDGED, max_size=6),
)
def test_whatever_a_candidate_does_the_table_is_whole_and_only_what_was_proven_is_baked(
    answers: list[Measured | Exception], again: Measured | Exception, judged: list[Any]
) -> None:
    script = Script(answers, again, judged)
    tuned = script.tune()
    assert TunedOptions.model_validate_json(tuned.model_dump_json()) == tuned
    by_name = {one.name: one for one in tuned.candidates}
    assert by_name.keys() >= {BASE, BASE_AGAIN, *(one.name for one in TABLE)}
    for candidate, answer in zip(TABLE, answers, strict=True):
        entry = by_name[candidate.name]
        if isinstance(answer, Exception) or not plausible(answer):
            assert entry.outcome == "failed"
            assert entry.reason or str(answer) == ""
            assert entry.reason.isprintable()
            assert len(entry.reason) <= 310
        else:
            assert entry.outcome != "failed"
    assert (tuned.choices != PLAIN) == bool(script.passed)
    if isinstance(again, Exception) or not plausible(again):
        assert tuned.choices == PLAIN


@given(st.sampled_from(ERRORS), st.integers(0, 4))
def test_one_fault_changes_nothing_for_the_others(error: Exception, place: int) -> None:
    answers: list[Measured | Exception] = [measured(0.9 - 0.05 * number) for number in range(5)]
    with_fault = [error if number == place else answer for number, answer in enumerate(answers)]
    sound = Script(answers, measured(1.0), []).tune()
    tuned = Script(with_fault, measured(1.0), []).tune()
    best = max(number for number in range(5) if number != place)
    assert tuned.choices == TABLE[best].choices
    for one, other in zip(sound.candidates, tuned.candidates, strict=True):
        if one.name not in (TABLE[place].name, TABLE[best].name, TABLE[4].name):
            assert one == other


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_who_ends_the_build_ends_it_at_any_candidate(end: type[BaseException]) -> None:
    def trial(choices: EngineChoices) -> Measured:
        if choices == TABLE[2].choices:
            raise end
        return measured(1.0)

    with pytest.raises(end):
        tune("latency", KEY, TABLE, trial=trial, judge=lambda *_: TextLoss(0, 0), progress=PlainProgress(io.StringIO()))


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trials whose process wrote so many bytes, without a process."""
    trials = Trials(TuningRequest("latency", tmp_path, "vllm", LIMITS, "none"), [list(range(1, 400))], tmp_path)

    def trials_of(content: bytes) -> Trials:
        def finish(line: Sequence[str], log: Path, scratch: Path, limit_s: float) -> None:
            log.write_bytes(b"\xff\x00 Using \xfe")
            log.with_name("found.json").write_bytes(content)

        monkeypatch.setattr(trial_process, "finish", finish)
        return trials

    return trials_of


FIGURE = st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=3), st.booleans())
RUN = st.dictionaries(st.sampled_from(["itl_ms", "ttft_ms", "tokens_per_s", "ttft_one_ms", "x"]), FIGURE)
ANYTHING = st.recursive(FIGURE, lambda inner: st.one_of(st.lists(inner, max_size=3), RUN), max_leaves=6)
RESULT = st.one_of(
    st.binary(max_size=40),
    st.fixed_dictionaries(
        {}, optional={name: st.one_of(ANYTHING, st.lists(RUN)) for name in ("runs", "replies", "mean", "worst")}
    ).map(lambda value: json.dumps(value).encode()),
    st.just(b"[" * 100_000),
    st.just(b'{"runs": [], "replies": [[1e400]]}'),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=RESULT)
def test_whatever_a_process_writes_is_figures_or_an_error_of_one_trial(written: Any, content: bytes) -> None:
    trials = written(content)
    try:
        found = trials.measure(EngineChoices())
    except TrialError:
        pass
    else:
        assert all(isinstance(token, int) for reply in found.replies for token in reply)
    try:
        loss = trials.judge(((1,),), ((2,),))
    except TrialError:
        pass
    else:
        assert loss.mean >= 0
        assert loss.worst >= 0
