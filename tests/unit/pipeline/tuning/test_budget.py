"""How long a tuning takes: scripted trials on a clock of their own."""

from __future__ import annotations

import io
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.progress import PlainProgress
from pipeline.tuning.budget import CLOSING_FACTOR, LEAST_CLOSING_S, Budget
from pipeline.tuning.candidates import Candidate
from pipeline.tuning.tuner import BASE, BASE_AGAIN, PLAIN, Measured, Replies, TrialError, tune
from pipeline.validate.text_under_load import TextLoss
from runtime.artifact import EngineChoices, TunedFigures, TunedOptions, TuningKey

KEY = TuningKey(engine="vllm 1", torch="2", driver="5", gpu="H", gpu_memory_bytes=1, tensor_parallel_size=1)


class Clock:
    """Trials that take so many seconds each, and are ended at their limit as a process is."""

    def __init__(self, *seconds: float, budget_s: float = math.inf, closing: int = 2) -> None:
        self.now, self.seconds = 1000.0, list(seconds)
        self.budget = Budget(budget_s, closing=closing, clock=lambda: self.now)
        self.took: list[float] = []

    def _pass(self) -> None:
        wanted = self.seconds.pop(0) if self.seconds else 40.0
        spent = min(wanted, self.budget.limit_s)
        self.now += spent
        self.took.append(spent)
        if spent < wanted:
            raise TrialError("nothing in time: it was ended")

    def trial(self, choices: EngineChoices) -> Measured:
        self._pass()
        part = 1.0 if choices == PLAIN else 0.7
        run = TunedFigures(itl_ms=4 * part, ttft_ms=50 * part, tokens_per_s=9000, ttft_one_ms=20 * part)
        return Measured((run, run), ((1,),))

    def judge(self, _: Replies, __: Replies) -> TextLoss:
        self._pass()
        return TextLoss(0.0, 0.0)

    def tune(self, candidates: int = 8) -> TunedOptions:
        table = [
            Candidate(f"c{number}", EngineChoices(max_num_batched_tokens=number + 1)) for number in range(candidates)
        ]
        progress = PlainProgress(io.StringIO())
        return tune("latency", KEY, table, trial=self.trial, judge=self.judge, progress=progress, budget=self.budget)


def outcomes(tuned: TunedOptions) -> dict[str, str]:
    return {one.name: one.outcome for one in tuned.candidates}


def test_when_the_time_is_over_what_was_measured_until_then_decides() -> None:
    clock = Clock(100, 50, 50, budget_s=330)
    tuned = clock.tune()
    found = outcomes(tuned)
    assert found["c0"] == "won"
    assert found["c1"] == "better"
    assert {found[f"c{number}"] for number in range(3, 8)} == {"not tried"}
    assert "the time was over (5.5 minutes for all)" in tuned.candidates[5].reason
    assert found[BASE] == found[BASE_AGAIN] == "base"
    assert sum(clock.took) <= 330


def test_a_candidate_that_hangs_costs_no_more_than_what_was_left_for_candidates() -> None:
    clock = Clock(100, 1e9, budget_s=400)
    tuned = clock.tune()
    assert outcomes(tuned)["c0"] == "failed"
    assert outcomes(tuned)[BASE_AGAIN] == "base"
    assert sum(clock.took) <= 400


def test_without_time_for_any_candidate_the_plain_options_stay() -> None:
    tuned = Clock(100, budget_s=120).tune()
    assert tuned.choices == PLAIN
    assert set(outcomes(tuned).values()) == {"base", "not tried"}


def test_where_no_text_is_read_there_is_time_for_more() -> None:
    def tried(closing: int) -> int:
        found = outcomes(Clock(100, budget_s=260, closing=closing).tune()).values()
        return sum(outcome not in ("base", "not tried") for outcome in found)

    assert tried(1) > tried(2)


def test_a_budget_is_told() -> None:
    assert (Budget(90).text, Budget().text) == ("1.5 minutes", "no limit")


SECONDS = st.one_of(st.floats(0.1, 900), st.just(1e9))


@settings(max_examples=200)
@given(st.lists(SECONDS, min_size=1, max_size=14), st.floats(1, 3600))
def test_a_tuning_takes_its_budget_and_at_most_two_closing_trials_more(seconds: list[float], budget_s: float) -> None:
    clock = Clock(*seconds, budget_s=budget_s)
    try:
        clock.tune()
    except TrialError:  # the plain options took more than all of it
        assert clock.took == [budget_s]
        return
    longest = max(clock.took)
    assert sum(clock.took) <= budget_s + 2 * max(CLOSING_FACTOR * longest, LEAST_CLOSING_S) + 1e-6
