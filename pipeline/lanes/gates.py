"""The figures an artifact has to meet, and what it is when it does not."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.artifact import Gate, Validation


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Bounds of the gates. A bound of none reports the figure without gating it.

    Attributes:
        perplexity_ratio: perplexity over that of the float model, at most.
        top1_agreement: part of positions at which both models would choose the same token, at least.
        known_prompts: part of the known prompts answered right, at least.
        ttft_ms: median time to the first token of one stream, at most.
        itl_ms: median time between tokens of one stream, at most.
        tokens_per_s: tokens per second of all streams together, at least.
        tool_accuracy: the classifier's accuracy on held-out utterances, at least; none leaves the embedded
            classifier its own bound, and any other without one.
    """

    perplexity_ratio: float
    top1_agreement: float
    known_prompts: float = 0.5
    ttft_ms: float | None = None
    itl_ms: float | None = None
    tokens_per_s: float | None = None
    tool_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured. None where there is no chat model, no reference or no classifier to measure.

    Attributes:
        ttft_ms, itl_ms: medians of one stream, in milliseconds.
        tokens_per_s: of `streams` streams together.
        held_out_tokens: positions behind the perplexity ratio and the agreement.
    """

    files: int
    perplexity: float | None = None
    perplexity_ratio: float | None = None
    top1_agreement: float | None = None
    held_out_tokens: int | None = None
    known_prompts: float | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None
    tokens_per_s: float | None = None
    streams: int | None = None
    tool_accuracy: float | None = None


def gates_of(figures: Figures, thresholds: Thresholds) -> tuple[Gate, ...]:
    """A gate for each figure that was measured, in the order in which a person reads them."""
    bounds: list[tuple[str, float | None, str, float | None, str]] = [
        ("files_verified", figures.files, "", None, "files"),
        ("known_prompts", figures.known_prompts, ">=", thresholds.known_prompts, ""),
        ("perplexity", figures.perplexity, "", None, ""),
        ("perplexity_ratio", figures.perplexity_ratio, "<=", thresholds.perplexity_ratio, ""),
        ("top1_agreement", figures.top1_agreement, ">=", thresholds.top1_agreement, ""),
        ("held_out_tokens", figures.held_out_tokens, "", None, "tokens"),
        ("ttft_p50", figures.ttft_ms, "<=", thresholds.ttft_ms, "ms"),
        ("itl_p50", figures.itl_ms, "<=", thresholds.itl_ms, "ms"),
        ("throughput", figures.tokens_per_s, ">=", thresholds.tokens_per_s, "tokens/s"),
        ("throughput_streams", figures.streams, "", None, "streams"),
        ("tool_accuracy", figures.tool_accuracy, ">=", thresholds.tool_accuracy, ""),
    ]
    return tuple(
        Gate.model_validate(
            {
                "name": name,
                "value": float(value),
                "relation": relation if threshold is not None else None,
                "threshold": threshold,
                "unit": unit,
            }
        )
        for name, value, relation, threshold, unit in bounds
        if value is not None
    )


def shortfall(gate: Gate) -> str:
    """How far a figure is from its bound, for a person.

    >>> shortfall(Gate(name="perplexity_ratio", value=1.5, relation="<=", threshold=1.25))
    'perplexity_ratio is 1.5, must be <= 1.25: 0.25 too high'
    """
    if gate.relation is None or gate.threshold is None:
        raise ValueError(f"{gate.name} has no bound")
    side = "too high" if gate.relation == "<=" else "too low"
    unit = f" {gate.unit}" if gate.unit else ""
    missed = abs(gate.value - gate.threshold)
    return f"{gate.name} is {gate.value:.4g}{unit}, must be {gate.relation} {gate.threshold:g}: {missed:.4g} {side}"


def failed_gates(validation: Validation) -> tuple[Gate, ...]:
    """The gates that were not met."""
    return tuple(gate for gate in validation.gates if not gate.passed)


def failures(validation: Validation) -> list[str]:
    """One line for each gate that failed, with by how much."""
    return [shortfall(gate) for gate in failed_gates(validation)]
