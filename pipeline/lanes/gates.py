"""Gates: measured figures are compared with their bounds, and failures are put into words.

`gate_specs` is the table of what is measured; bounds and figures are mappings from its entries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipeline.lanes.gate_specs import OPTIONS, SPECS, Candidate, GateSpec
from pipeline.problem import Problem
from runtime.artifact import Gate, Validation

# The bound of each gate that has one. A figure without a bound is reported alone.
Thresholds = Mapping[GateSpec, float]

# What was measured.
Figures = Mapping[GateSpec, float]


def default_thresholds(candidate: Candidate) -> Thresholds:
    """Return the bounds unless told otherwise, of the figures that a candidate must have."""
    bounds = {spec: spec.default(candidate) for spec in SPECS if spec.applies_to(candidate)}
    return {spec: bound for spec, bound in bounds.items() if bound is not None}


def inapplicable_bounds(candidate: Candidate, asked: Thresholds) -> list[Problem]:
    """Return a problem for each bound that was asked for where its figure is not measured, or that bounds nothing."""
    fitting = ", ".join(option.name for spec, option in OPTIONS.items() if spec.applies_to(candidate))
    return [
        Problem(str(OPTIONS[spec].name), f"a bound of what is measured here: {fitting}", f"{bound:g}", "leave it out")
        for spec, bound in asked.items()
        if not spec.applies_to(candidate)
    ] + [
        Problem(str(OPTIONS[spec].name), "a number", f"{bound:g}", "name the figure that is enough")
        for spec, bound in asked.items()
        if spec.applies_to(candidate) and not is_bound(bound)
    ]


def gates_of(figures: Figures, thresholds: Thresholds) -> tuple[Gate, ...]:
    """Make a gate for each figure that was measured, in the order in which a person reads them."""
    gates = []
    for spec in SPECS:
        if (value := figures.get(spec)) is not None:
            bound = thresholds.get(spec)
            relation = spec.relation if bound is not None else None
            gates.append(Gate(name=spec.name, value=float(value), relation=relation, threshold=bound, unit=spec.unit))
    return tuple(gates)


def gates_by_part(spec: GateSpec, figures: Mapping[str, float], thresholds: Thresholds) -> tuple[Gate, ...]:
    """Make a gate for each part of what a figure was taken of, such as each tool; all are held to its bound.

    >>> from pipeline.lanes.gate_specs import TOOL_ACCURACY
    >>> [gate.name for gate in gates_by_part(TOOL_ACCURACY, {"take_screenshot": 0.9}, {})]
    ['tool_accuracy:take_screenshot']
    """
    bound = thresholds.get(spec)
    relation = spec.relation if bound is not None else None
    return tuple(
        Gate(name=f"{spec.name}:{part}", value=value, relation=relation, threshold=bound, unit=spec.unit)
        for part, value in figures.items()
    )


def missing_figures(figures: Figures, candidate: Candidate) -> list[str]:
    """Return the names of the figures that a candidate must have, and that were not measured.

    What was measured and is no figure counts as not measured: NaN meets no bound and fails none either.
    """
    return [spec.name for spec in SPECS if spec.applies_to(candidate) and not is_figure(figures.get(spec), spec)]


def is_figure(value: object, spec: GateSpec) -> bool:
    """Whether a value can be the figure of a gate: a number from 0 on, as large as the figure can be.

    >>> from pipeline.lanes.gate_specs import KNOWN_PROMPTS
    >>> [is_figure(value, KNOWN_PROMPTS) for value in (0.5, 1, float("nan"), -0.1, 1.5, True, "0.5", None)]
    [True, True, False, False, False, False, False, False]
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return 0 <= value <= (math.inf if spec.most is None else spec.most)


def missing_bounds(thresholds: Thresholds, candidate: Candidate) -> list[str]:
    """Return the names of the gates that a candidate must have, and that nothing bounds."""
    bounded = [spec for spec in SPECS if spec.applies_to(candidate) and spec.relation is not None]
    return [spec.name for spec in bounded if not is_bound(thresholds.get(spec))]


def is_bound(value: object) -> bool:
    """Whether a value can be a bound: a number from 0 on. Infinity would be met by everything."""
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value) and value >= 0


def bound_text(gate: Gate) -> str:
    """Word a gate's bound for a person; empty for a figure without one.

    >>> bound_text(Gate(name="itl_p50", value=5, relation="<=", threshold=50))
    '≤ 50'
    """
    if gate.relation is None or gate.threshold is None:
        return ""
    return f"{'≤' if gate.relation == '<=' else '≥'} {gate.threshold:g}"


def planned_text(thresholds: Thresholds) -> str:
    """Word all bounds in one line, as the plan tells them."""
    gates = gates_of(thresholds, thresholds)
    labels = [spec for spec in SPECS if spec in thresholds]
    return ", ".join(
        f"{spec.label} {bound_text(gate)} {gate.unit}".rstrip() for spec, gate in zip(labels, gates, strict=True)
    )


def describe_failure(gate: Gate) -> str:
    """Word how far a figure is from its bound.

    >>> describe_failure(Gate(name="perplexity_ratio", value=1.5, relation="<=", threshold=1.25))
    'perplexity_ratio is 1.5, must be <= 1.25: 0.25 too high'
    """
    if gate.relation is None or gate.threshold is None:
        raise ValueError(f"{gate.name} has no bound")
    side = "too high" if gate.relation == "<=" else "too low"
    unit = f" {gate.unit}" if gate.unit else ""
    missed = abs(gate.value - gate.threshold)
    return f"{gate.name} is {gate.value:.4g}{unit}, must be {gate.relation} {gate.threshold:g}: {missed:.4g} {side}"


def failed_gates(validation: Validation) -> tuple[Gate, ...]:
    """Return the gates that were not met."""
    return tuple(gate for gate in validation.gates if not gate.passed)


def failures(validation: Validation) -> list[str]:
    """Return one line for each gate that failed, with by how much."""
    return [describe_failure(gate) for gate in failed_gates(validation)]
