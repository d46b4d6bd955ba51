"""What tuning takes, and what it must never take: scripted candidates, no engine."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.progress import PlainProgress
from pipeline.tuning.candidates import Candidate, Situation, candidates, capture_sizes, merged
from pipeline.tuning.choosing import LEAST_NOISE, MOST_LOSS, base_of, median_of, score, verdict
from pipeline.tuning.tuner import BASE, BASE_AGAIN, PLAIN, TOGETHER, Measured, Replies, TrialError, tune
from pipeline.validate.text_under_load import TextLoss
from runtime.artifact import EngineChoices, TunedFigures, TunedOptions, TuningKey

KEY = TuningKey(engine="vllm 1", torch="2", driver="5", gpu="H", gpu_memory_bytes=1, tensor_parallel_size=1)
FULL = Candidate("full", EngineChoices(cudagraph_mode="FULL"))
TRITON = Candidate("triton", EngineChoices(attention_backend="TRITON_ATTN"))
SOUND = TextLoss(0.0, 0.1)
GARBAGE = TextLoss(3.0, 9.0)


def figures(part: float = 1.0, *, tokens: float = 1.0) -> TunedFigures:
    return TunedFigures(itl_ms=4 * part, ttft_ms=50 * part, tokens_per_s=9000 / tokens)


def measured(*parts: float, mark: int = 1) -> Measured:
    return Measured(tuple(figures(part) for part in parts), ((mark,),))


Answer = Measured | TrialError


class Script:
    """Trials by the options' text, one answer after another; what is not scripted is as fast as the plain options."""

    def __init__(self, answers: dict[str, Sequence[Answer]]) -> None:
        self.answers = {name: list(given) for name, given in answers.items()}
        self.asked: list[EngineChoices] = []
        self.judged: list[tuple[Replies, Replies]] = []

    def trial(self, choices: EngineChoices) -> Measured:
        self.asked.append(choices)
        queue = self.answers.get(choices.text, [])
        answer = queue.pop(0) if queue else measured(1.0, 1.0, 1.0)
        if isinstance(answer, TrialError):
            raise answer
        return answer

    def tune(
        self, *table: Candidate, judge: Callable[[Replies, Replies], TextLoss] | None = None, goal: str = "latency"
    ) -> TunedOptions:
        def told(served: Replies, plain: Replies) -> TextLoss:
            self.judged.append((served, plain))
            return judge(served, plain) if judge else SOUND

        return tune(goal, KEY, table, trial=self.trial, judge=told, progress=PlainProgress(io.StringIO()))


def outcomes(tuned: TunedOptions) -> dict[str, str]:
    return {one.name: one.outcome for one in tuned.candidates}


def test_the_best_that_wins_clearly_is_taken_after_its_text_was_read() -> None:
    script = Script({FULL.choices.text: [measured(0.8, 0.81, 0.82, mark=7)], TRITON.choices.text: [measured(1.2, 1.2)]})
    tuned = script.tune(FULL, TRITON)
    assert tuned.choices == FULL.choices
    assert outcomes(tuned) == {BASE: "base", "full": "won", "triton": "slower", BASE_AGAIN: "base"}
    assert script.asked == [PLAIN, FULL.choices, TRITON.choices, PLAIN]
    assert script.judged == [(((7,),), ((1,),))]
    assert all(one.runs for one in tuned.candidates)


def test_where_all_are_worse_or_equal_the_plain_options_stay_and_no_text_is_read() -> None:
    script = Script({FULL.choices.text: [measured(1.05)], TRITON.choices.text: [measured(0.995, 1.0)]})
    tuned = script.tune(FULL, TRITON)
    assert tuned.choices == PLAIN
    assert outcomes(tuned) == {BASE: "base", "full": "slower", "triton": "no clear win", BASE_AGAIN: "base"}
    assert script.judged == []


def test_one_run_of_several_that_is_no_better_is_no_clear_win() -> None:
    assert Script({FULL.choices.text: [measured(0.7, 0.7, 0.995)]}).tune(FULL).choices == PLAIN


def test_the_winner_that_says_garbage_is_not_baked_and_the_next_is() -> None:
    script = Script({FULL.choices.text: [measured(0.7, mark=9)], TRITON.choices.text: [measured(0.8, mark=3)]})
    both = merged([FULL.choices, TRITON.choices])
    script.answers[both.text] = [measured(0.6, mark=9)]
    tuned = script.tune(FULL, TRITON, judge=lambda served, _: GARBAGE if served == ((9,),) else SOUND)
    assert tuned.choices == TRITON.choices
    assert outcomes(tuned) == {
        BASE: "base",
        "full": "text",
        "triton": "won",
        TOGETHER: "text",
        BASE_AGAIN: "base",
    }
    assert [served for served, _ in script.judged] == [((9,),), ((9,),), ((3,),)]


def test_a_winner_whose_text_cannot_be_scored_is_not_baked() -> None:
    def broken(served: Replies, plain: Replies) -> TextLoss:
        raise TrialError("the engine died")

    tuned = Script({FULL.choices.text: [measured(0.7)]}).tune(FULL, judge=broken)
    assert tuned.choices == PLAIN
    assert outcomes(tuned)["full"] == "text"


@pytest.mark.parametrize("what", ["the engine did not start", "nothing within 300 s: it was ended"])
def test_a_candidate_that_crashes_or_hangs_loses_nothing_but_itself(what: str) -> None:
    script = Script({FULL.choices.text: [TrialError(what)], TRITON.choices.text: [measured(0.8)]})
    tuned = script.tune(FULL, TRITON)
    assert tuned.choices == TRITON.choices
    assert (tuned.candidates[1].outcome, tuned.candidates[1].reason) == ("failed", what)


def test_a_candidate_that_is_not_tried_is_told_and_not_started() -> None:
    script = Script({})
    tuned = script.tune(Candidate("x", FULL.choices, "there is none here"))
    assert script.asked == [PLAIN, PLAIN]
    assert (tuned.candidates[1].outcome, tuned.candidates[1].reason) == ("not tried", "there is none here")


@pytest.mark.parametrize("again", [measured(0.5, 0.5), measured(2, 2), TrialError("gone")])
def test_where_the_plain_options_themselves_drift_nothing_wins(again: Answer) -> None:
    tuned = Script({PLAIN.text: [measured(1.0, 1.0), again], FULL.choices.text: [measured(0.7)]}).tune(FULL)
    assert tuned.choices == PLAIN
    assert outcomes(tuned)["full"] == "no clear win"


def test_plain_options_that_cannot_be_measured_are_told() -> None:
    with pytest.raises(TrialError, match="no engine"):
        Script({PLAIN.text: [TrialError("no engine")]}).tune(FULL)
    with pytest.raises(TrialError, match="not measured"):
        Script({PLAIN.text: [Measured((), ())]}).tune(FULL)


def test_of_equal_winners_the_earlier_in_the_table_is_taken() -> None:
    script = Script({FULL.choices.text: [measured(0.8)], TRITON.choices.text: [measured(0.8)]})
    assert script.tune(TRITON, FULL).choices == TRITON.choices


def test_winners_are_tried_together_and_taken_so_where_that_is_better() -> None:
    both = merged([TRITON.choices, FULL.choices])
    script = Script(
        {FULL.choices.text: [measured(0.85)], TRITON.choices.text: [measured(0.8)], both.text: [measured(0.7)]}
    )
    tuned = script.tune(FULL, TRITON)
    assert tuned.choices == both
    assert outcomes(tuned) == {BASE: "base", "full": "better", "triton": "better", TOGETHER: "won", BASE_AGAIN: "base"}


def test_what_is_better_at_the_goal_and_much_worse_elsewhere_is_no_win() -> None:
    fast_and_late = Measured((TunedFigures(itl_ms=2, ttft_ms=80, tokens_per_s=9000),), ((1,),))
    tuned = Script({FULL.choices.text: [fast_and_late]}).tune(FULL)
    assert tuned.choices == PLAIN
    assert "ttft_ms is 60% worse" in tuned.candidates[1].reason


def first_tokens(one: float, together: float = 1.0, itl: float = 1.0) -> Measured:
    run = TunedFigures(itl_ms=4 * itl, ttft_ms=50 * together, tokens_per_s=9000, ttft_one_ms=20 * one)
    return Measured((run, run), ((1,),))


def test_for_latency_the_first_token_of_one_stream_counts() -> None:
    """As full graphs do: the next token comes no sooner, the first one much."""
    script = Script({PLAIN.text: [first_tokens(1.0)] * 2, FULL.choices.text: [first_tokens(0.57)] * 2})
    assert script.tune(FULL).choices == FULL.choices
    assert script.tune(FULL, goal="throughput").choices == PLAIN


@pytest.mark.parametrize(("full", "wins"), [(0.79, True), (0.9, False)])
def test_what_is_better_in_every_run_wins_though_the_plain_options_differ(full: float, wins: bool) -> None:
    """As on a host with other work on it: 0.87 to 1.12 for the plain options."""
    plain = [measured(1.05, 1.12, 1.05), measured(0.87, 0.98, 0.96)]
    tuned = Script({PLAIN.text: plain, FULL.choices.text: [measured(full, full, full)]}).tune(FULL)
    assert (tuned.choices == FULL.choices) is wins


def test_a_first_token_that_comes_much_later_is_no_win() -> None:
    script = Script({PLAIN.text: [first_tokens(1.0)] * 2, FULL.choices.text: [first_tokens(1.2, 0.5, 0.7)]})
    tuned = script.tune(FULL)
    assert tuned.choices == PLAIN
    assert "ttft_one_ms is 20% worse" in tuned.candidates[1].reason


def test_a_figure_that_the_machine_cannot_repeat_may_be_worse_by_that_too() -> None:
    """Bursts differ by 8 %: a burst that is 15 % worse may be as fast. One that is 25 % worse is not."""
    for burst, wins in ((1.15, True), (1.25, False)):
        plain = [first_tokens(1.0, 1.0), first_tokens(1.0, 1.08), first_tokens(1.0, 0.92)]
        base = base_of("latency", [run for one in plain for run in one.runs])
        assert verdict("latency", first_tokens(0.5, burst).runs, base).wins is wins


def test_figures_of_the_first_tuning_are_read_without_what_it_did_not_measure() -> None:
    old, new = figures(0.8), first_tokens(0.1).runs[0]
    assert score("latency", old, figures()) == pytest.approx(0.8)
    assert score("latency", new, figures()) == pytest.approx(1.0)
    assert median_of([old, new]).ttft_one_ms == new.ttft_one_ms


def test_for_throughput_tokens_count() -> None:
    more = Measured((figures(1.0, tokens=0.9),), ((1,),))
    script = Script({FULL.choices.text: [more, more]})
    assert script.tune(FULL, goal="throughput").choices == FULL.choices
    assert script.tune(FULL, goal="latency").choices == PLAIN


PARTS = st.lists(st.floats(0.2, 5.0), min_size=1, max_size=5)
GOALS = st.sampled_from(["latency", "throughput"])


@given(GOALS, PARTS, PARTS)
def test_no_candidate_wins_with_a_run_within_what_the_plain_options_reach(
    goal: str, plain: list[float], other: list[float]
) -> None:
    base = base_of(goal, [figures(part, tokens=part) for part in plain])
    runs = [figures(part, tokens=part) for part in other]
    found = verdict(goal, runs, base)
    best_plain = min(score(goal, figures(part, tokens=part), base.figures) for part in plain)
    if found.wins:
        assert max(score(goal, run, base.figures) for run in runs) < best_plain
        assert found.score < 1 - LEAST_NOISE


@given(GOALS, PARTS)
def test_the_plain_options_never_win_against_themselves(goal: str, plain: list[float]) -> None:
    runs = [figures(part, tokens=part) for part in plain]
    assert not verdict(goal, runs, base_of(goal, runs)).wins


@given(GOALS, PARTS, st.floats(0.01, 100))
def test_a_verdict_does_not_depend_on_how_fast_the_machine_is(goal: str, other: list[float], speed: float) -> None:
    def at(scale: float) -> tuple[bool, str]:
        base = base_of(goal, [figures(scale, tokens=scale)] * 2)
        found = verdict(goal, [figures(part * scale, tokens=part * scale) for part in other], base)
        return found.wins, found.outcome

    edges = (1 - LEAST_NOISE, 1 + LEAST_NOISE, 1 + LEAST_NOISE + MOST_LOSS)
    if not any(math.isclose(part, edge, rel_tol=1e-6) for part in other for edge in edges):
        assert at(1.0) == at(speed)


@given(PARTS)
def test_the_median_run_is_within_the_runs(parts: list[float]) -> None:
    middle = median_of([figures(part) for part in parts])
    assert 4 * min(parts) * (1 - 1e-9) <= middle.itl_ms <= 4 * max(parts) * (1 + 1e-9)


def test_without_runs_nothing_is_told() -> None:
    with pytest.raises(ValueError, match="found none"):
        base_of("latency", [])
    with pytest.raises(ValueError, match="found none"):
        verdict("latency", [], base_of("latency", [figures()]))


ANSWERS = st.one_of(
    st.lists(st.floats(0.3, 2.0), min_size=1, max_size=3).map(lambda parts: measured(*parts)),
    st.just(TrialError("it crashed")),
    st.just(Measured((), ())),
)


@settings(max_examples=60)
@given(st.lists(ANSWERS, min_size=1, max_size=5), st.booleans(), st.sampled_from([1.0, 1.02, 1.5]))
def test_whatever_happens_only_what_won_and_was_proven_is_baked(
    answers: list[Answer], sound: bool, drift: float
) -> None:
    table = [
        Candidate(f"steps of {number}", EngineChoices(max_num_batched_tokens=number))
        for number in range(1, len(answers) + 1)
    ]
    script = Script({one.choices.text: [answer] for one, answer in zip(table, answers, strict=True)})
    script.answers[PLAIN.text] = [measured(1.0, 1.0), measured(drift)]
    tuned = script.tune(*table, judge=lambda *_: SOUND if sound else GARBAGE)
    won = [one for one in tuned.candidates if one.outcome == "won"]
    assert len(won) <= 1
    assert tuned.choices == (won[0].options if won else PLAIN)
    assert not won or sound
    assert {one.name for one in table} <= outcomes(tuned).keys()
    best = [one for one in tuned.candidates if one.outcome == "better"]
    if sound:
        assert not best or won


def test_the_table_has_no_trap_and_says_why_what_is_not_tried() -> None:
    for method in ("none", "fp8", "awq", "gptq", "int8"):
        for sm in (None, 75, 89, 90, 100):
            table = candidates(Situation(sm, method, 256, 256, 4096))
            assert len({one.name for one in table}) == len(table)
            assert len({one.choices.text for one in table}) == len(table)
            assert all(one.choices != PLAIN for one in table)
            flashinfer = next(one for one in table if one.choices.attention_backend == "FLASHINFER")
            assert flashinfer.not_tried
            if sm is None:
                assert all(one.not_tried for one in table)
    tried = {one.name for one in candidates(Situation(90, "awq", 256, 256, 4096)) if not one.not_tried}
    assert {"full graphs", "Marlin's products", "Machete's products"} <= tried
    assert not {"KV cache in FP8"} & tried
    for sm in (89, 90):  # what vLLM refuses is not tried
        tried = {one.name for one in candidates(Situation(sm, "fp8", 256, 256, 4096)) if not one.not_tried}
        assert "PyTorch's products" in tried
        assert "Marlin's products" not in tried
    assert not next(
        one for one in candidates(Situation(90, "awq", 256, 256, 4096, kv_fp8=True)) if one.choices.kv_cache_dtype
    ).not_tried


@given(st.integers(1, 1024))
def test_graphs_are_captured_for_one_stream_and_for_all(streams: int) -> None:
    sizes = capture_sizes(streams)
    assert sizes[0] == 1
    assert sizes[-1] == streams
    assert list(sizes) == sorted(set(sizes))


def test_together_the_better_ones_choice_stands_and_passes_add_up() -> None:
    one = EngineChoices(cudagraph_mode="FULL", fusions=("fuse_act_quant",))
    other = EngineChoices(cudagraph_mode="PIECEWISE", fusions=("fuse_norm_quant",), max_num_batched_tokens=9)
    assert merged([one, other]) == EngineChoices(
        cudagraph_mode="FULL", fusions=("fuse_act_quant", "fuse_norm_quant"), max_num_batched_tokens=9
    )


@given(sequences=st.integers(1, 2048), context=st.integers(16, 32768))
def test_a_step_is_tried_where_the_engine_takes_it_and_it_is_another(sequences: int, context: int) -> None:
    """vLLM refuses steps of fewer tokens than sequences, and none has more than all of them together."""
    for one in candidates(Situation(90, "none", min(sequences, 256), sequences, context)):
        tokens = one.choices.max_num_batched_tokens
        if tokens and not one.not_tried:
            assert 1.5 * sequences <= tokens < sequences * context
