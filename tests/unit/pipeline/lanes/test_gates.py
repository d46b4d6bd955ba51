"""Figures against bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.lanes.gates import Figures, Thresholds, failures, gates_of, shortfall
from runtime.artifact import Gate, Validation

BOUNDS = Thresholds(perplexity_ratio=1.25, top1_agreement=0.8, known_prompts=0.5, ttft_ms=100)
GOOD = Figures(
    files=7, perplexity=9.0, perplexity_ratio=1.1, top1_agreement=0.85, known_prompts=1.0, ttft_ms=50, itl_ms=30
)


def validation(figures: Figures) -> Validation:
    return Validation(gates=gates_of(figures, BOUNDS), validated_at="2026-11-22T10:00:00+00:00", digest="d")


def test_good_figures_pass() -> None:
    assert validation(GOOD).passed
    assert failures(validation(GOOD)) == []


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        (Figures(files=1, perplexity_ratio=1.5), "perplexity_ratio is 1.5, must be <= 1.25: 0.25 too high"),
        (Figures(files=1, top1_agreement=0.7), "top1_agreement is 0.7, must be >= 0.8: 0.1 too low"),
        (Figures(files=1, known_prompts=0.0), "known_prompts is 0, must be >= 0.5: 0.5 too low"),
        (Figures(files=1, ttft_ms=110), "ttft_p50 is 110 ms, must be <= 100: 10 too high"),
        (Figures(files=1, perplexity_ratio=float("nan")), "perplexity_ratio is nan, must be <= 1.25: nan too high"),
    ],
)
def test_a_failed_gate_says_by_how_much(figures: Figures, told: str) -> None:
    assert not validation(figures).passed
    assert failures(validation(figures)) == [told]


def test_a_figure_without_a_bound_is_reported_and_passes() -> None:
    (gate,) = [gate for gate in gates_of(GOOD, BOUNDS) if gate.name == "itl_p50"]
    assert (gate.value, gate.relation, gate.threshold, gate.passed) == (30, None, None, True)


def test_what_was_not_measured_has_no_gate() -> None:
    assert [gate.name for gate in gates_of(Figures(files=3), BOUNDS)] == ["files_verified"]


def test_a_gate_without_a_bound_has_no_shortfall() -> None:
    with pytest.raises(ValueError, match="no bound"):
        shortfall(Gate(name="x", value=1))


@given(st.floats(0, 10), st.floats(0, 1))
def test_failures_are_told_exactly_when_the_validation_failed(ratio: float, agreement: float) -> None:
    made = validation(Figures(files=1, perplexity_ratio=ratio, top1_agreement=agreement))
    assert bool(failures(made)) == (not made.passed) == (ratio > 1.25 or agreement < 0.8)
