"""The table of gates, and figures against bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline import cli
from pipeline.lanes import LANES, METHODS, TRT_PYTORCH, gate_specs, gates
from pipeline.lanes.gate_specs import BY_NAME, OPTIONS, SPECS, Candidate, GateSpec
from pipeline.lanes.gates import (
    bound_text,
    default_thresholds,
    describe_failure,
    failures,
    gates_of,
    inapplicable_bounds,
    missing_figures,
    planned_text,
)
from runtime.artifact import Gate, Validation

Figures = Mapping[GateSpec, float]

DOCS = Path(__file__).parents[4] / "docs"

FILES, KNOWN, RATIO, TOP1 = (
    gate_specs.FILES,
    gate_specs.KNOWN_PROMPTS,
    gate_specs.PERPLEXITY_RATIO,
    gate_specs.TOP1_AGREEMENT,
)
TTFT, ITL = gate_specs.TTFT, gate_specs.ITL
BOUNDS = {RATIO: 1.25, TOP1: 0.8, KNOWN: 0.5, TTFT: 100.0}
GOOD = {FILES: 7.0, gate_specs.PERPLEXITY: 9.0, RATIO: 1.1, TOP1: 0.85, KNOWN: 1.0, TTFT: 50.0, ITL: 30.0}
candidates = st.builds(
    Candidate,
    st.sampled_from([*LANES.values(), TRT_PYTORCH]),
    chat=st.booleans(),
    method=st.none() | st.sampled_from([*METHODS, "a newer one"]),
    parameters=st.sampled_from([135_000_000, 8_000_000_000]),
    classifier=st.sampled_from([None, "embedded", "other"]),
)


def validation(figures: Figures) -> Validation:
    return Validation(gates=gates_of(figures, BOUNDS), validated_at="2026-11-22T10:00:00+00:00", digest="d")


def test_good_figures_pass() -> None:
    assert validation(GOOD).passed
    assert failures(validation(GOOD)) == []


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({RATIO: 1.5}, "perplexity_ratio is 1.5, must be <= 1.25: 0.25 too high"),
        ({TOP1: 0.7}, "top1_agreement is 0.7, must be >= 0.8: 0.1 too low"),
        ({KNOWN: 0.0}, "known_prompts is 0, must be >= 0.5: 0.5 too low"),
        ({TTFT: 110.0}, "ttft_p50 is 110 ms, must be <= 100: 10 too high"),
        ({RATIO: math.nan}, "perplexity_ratio is nan, must be <= 1.25: nan too high"),
    ],
)
def test_a_failed_gate_says_by_how_much(figures: Figures, told: str) -> None:
    assert not validation(figures).passed
    assert failures(validation(figures)) == [told]


def test_a_figure_without_a_bound_is_reported_and_passes() -> None:
    (gate,) = [gate for gate in gates_of(GOOD, BOUNDS) if gate.name == "itl_p50"]
    assert (gate.value, gate.relation, gate.threshold, gate.passed) == (30, None, None, True)


def test_what_was_not_measured_has_no_gate() -> None:
    assert [gate.name for gate in gates_of({FILES: 3.0}, BOUNDS)] == ["files_verified"]


def test_a_gate_without_a_bound_has_no_shortfall() -> None:
    with pytest.raises(ValueError, match="no bound"):
        describe_failure(Gate(name="x", value=1))


@given(st.floats(0, 10), st.floats(0, 1))
def test_failures_are_told_exactly_when_the_validation_failed(ratio: float, agreement: float) -> None:
    made = validation({RATIO: ratio, TOP1: agreement})
    assert bool(failures(made)) == (not made.passed) == (ratio > 1.25 or agreement < 0.8)


# The table


def test_names_options_and_labels_are_told_apart() -> None:
    assert len(BY_NAME) == len(SPECS)
    assert len({option.parameter for option in OPTIONS.values()}) == len(OPTIONS)
    labels = [spec.label for spec in OPTIONS]
    assert all(labels)
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("spec", OPTIONS, ids=str)
def test_an_option_says_on_which_side_its_bound_is(spec: GateSpec) -> None:
    assert OPTIONS[spec].name.startswith({"<=": "--max-", ">=": "--min-"}[str(spec.relation)])


@given(candidates)
def test_bounds_are_of_figures_that_can_be_bounded_and_asked_for(candidate: Candidate) -> None:
    for spec, bound in default_thresholds(candidate).items():
        assert spec.relation is not None
        assert spec.applies_to(candidate)
        option = OPTIONS[spec]
        assert option.least <= bound <= (math.inf if option.most is None else option.most)


@given(candidates, st.dictionaries(st.sampled_from(list(OPTIONS)), st.floats(1, 1)))
def test_a_bound_that_is_asked_for_is_held_or_refused(candidate: Candidate, asked: dict[GateSpec, float]) -> None:
    """None is taken in silence that nothing is measured for."""
    refused = {problem.where for problem in inapplicable_bounds(candidate, asked)}
    assert refused == {OPTIONS[spec].name for spec in asked if not spec.applies_to(candidate)}


@given(candidates, st.sets(st.sampled_from(SPECS)))
def test_a_figure_that_is_missing_is_told(candidate: Candidate, lost: set[GateSpec]) -> None:
    needed = [spec for spec in SPECS if spec.applies_to(candidate)]
    figures = {spec: 1.0 for spec in needed if spec not in lost}
    assert missing_figures(figures, candidate) == [spec.name for spec in needed if spec in lost]


@pytest.mark.parametrize(
    ("chat", "method", "classifier", "lane", "without"),
    [
        (True, "awq", "embedded", "vllm", set()),
        (True, "awq", None, "cpu", {"tool_accuracy"}),
        (True, None, None, "vllm", {"tool_accuracy", "perplexity_ratio", "top1_agreement"}),
        (True, "fp8", "other", "trt", {"perplexity", "perplexity_ratio"}),
        (False, None, "other", "trt", set(BY_NAME) - {"files_verified", "tool_accuracy"}),
    ],
)
def test_which_artifacts_must_have_which_figures(
    chat: bool, method: str | None, classifier: Literal["embedded", "other"] | None, lane: str, without: set[str]
) -> None:
    candidate = Candidate(LANES[lane], chat=chat, method=method, classifier=classifier, prompt_tokens=5525)
    untuned = {"text_under_load", "text_under_load_worst"}
    needed = {spec.name for spec in SPECS if spec.applies_to(candidate)}
    assert needed == set(BY_NAME) - without - {"tool_silence"} - untuned
    tuned = replace(candidate, tuned=True)
    assert {spec.name for spec in SPECS if spec.applies_to(tuned)} == needed | untuned


def test_a_bound_is_shown_with_its_side_and_unit() -> None:
    assert planned_text({ITL: 50.0, RATIO: 1.25}) == "perplexity ratio ≤ 1.25, ITL ≤ 50 ms"
    assert [bound_text(gate) for gate in gates_of({FILES: 1.0, TOP1: 0.9}, {TOP1: 0.8})] == ["", "≥ 0.8"]


def test_a_new_entry_reaches_bounds_plan_and_gates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What reads the table, by an entry that nothing else knows."""
    spec = GateSpec(
        "long_context",
        lambda candidate: candidate.chat,
        relation=">=",
        default=lambda candidate: 0.9 if candidate.lane.perplexity else 0.8,
        option=gate_specs.BoundOption("--min-long-context", "Of a long prompt."),
        label="long context",
    )
    monkeypatch.setattr(gates, "SPECS", (*SPECS, spec))
    monkeypatch.setattr(gates, "OPTIONS", OPTIONS | {spec: spec.option})
    bounds = default_thresholds(Candidate(LANES["trt"], chat=True, method="fp8"))
    assert bounds[spec] == 0.8
    assert planned_text(bounds).endswith("long context ≥ 0.8")
    assert gates_of({spec: 0.7}, bounds)[0].passed is False
    assert [problem.where for problem in inapplicable_bounds(Candidate(LANES["cpu"]), {spec: 1.0})] == [
        "--min-long-context"
    ]


@pytest.mark.parametrize("command", ["run", "validate"])
def test_the_command_line_has_every_option_of_the_table(command: str) -> None:
    told = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert [option.name for option in OPTIONS.values() if option.name not in told] == []


def test_the_pages_name_every_gate_and_option() -> None:
    artifact, quality = ((DOCS / name).read_text("utf-8") for name in ("artifact.md", "quality.md"))
    assert [spec.name for spec in SPECS if f"`{spec.name}`" not in artifact] == []
    assert [option.name for option in OPTIONS.values() if f"`{option.name}`" not in quality] == []


def test_the_page_on_quality_tells_the_recipe_of_every_method() -> None:
    page = (DOCS / "quality.md").read_text("utf-8")
    assert [name for name in METHODS.keys() - {"none"} if f"| `{name}` |" not in page] == []
