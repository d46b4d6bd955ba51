"""What proves an artifact: the gates that it must have passed, and figures that can be."""

from __future__ import annotations

from runtime.artifact import ArtifactError, BuildMetadata
from runtime.artifact.lanes import LONG_PROMPT_TOKENS, engine_of
from runtime.artifact.schema.proof import Gate, Relation
from runtime.artifact.schema.tool_model import SCREENSHOT_TOOL


def expected_gates(metadata: BuildMetadata) -> dict[str, Relation | None]:
    """The gates that prove an artifact, each with how its figure must stand to a bound; none for one that has no bound.

    What they are depends on what the artifact holds, not on what was written down: a gate that was left out would pass.
    """
    expected: dict[str, Relation | None] = {"files_verified": None}
    if (chat := metadata.chat) is not None:
        expected |= {"known_prompts": ">=", "replies_end": ">=", "held_out_tokens": None}
        expected |= {"ttft_p50": "<=", "itl_p50": "<=", "throughput": ">="}
        if chat.limits.max_input_len > LONG_PROMPT_TOKENS:
            expected["long_prompt_ratio"] = ">="
        if chat.tuned:
            expected |= {"text_under_load": "<=", "text_under_load_worst": "<="}
        told, compared = engine_of(metadata).tells_probabilities, not chat.quantization.prequantized
        if told:
            expected["perplexity"] = None
        if compared:
            expected |= {"top1_agreement": ">=", **({"perplexity_ratio": "<="} if told else {})}
    if (tool := metadata.tool) is not None:
        unmeasured = set(metadata.validation.not_measured) if metadata.validation else set()
        for entry in tool.served_tools:
            accuracy = f"tool_accuracy:{entry.name}"
            # The screenshot can be measured always.
            silent = accuracy in unmeasured and entry.name != SCREENSHOT_TOOL
            whole = "tool_silence" if silent else "tool_accuracy"
            expected[whole] = ">="
            if tool.tools:
                expected[f"{whole}:{entry.name}"] = ">="
    return expected


# Figures that are a part of something, by the name before a tool's.
PARTS = frozenset({"known_prompts", "replies_end", "top1_agreement", "tool_accuracy", "tool_silence"})


def figure_problem(gate: Gate) -> str | None:
    """What a gate's figure cannot be, whatever was measured; none where it can.

    >>> from runtime.artifact.schema.proof import Gate
    >>> figure_problem(Gate(name="known_prompts", value=7))
    'at most 1'
    """
    if gate.name.partition(":")[0] in PARTS and gate.value > 1:
        return "at most 1"
    if gate.name in {"files_verified", "held_out_tokens"} and gate.value < 1:
        return "at least 1: of nothing nothing was measured"
    if gate.name == "perplexity" and gate.value < 1:
        return "at least 1, that of a model that is sure and right everywhere"
    if gate.name == "perplexity_ratio" and gate.value == 0:
        return "more than 0"
    return None


def gate_problem(metadata: BuildMetadata) -> str | None:
    """What an artifact's gates lack to prove it: one that failed, or one that should be there; none where nothing."""
    validation = metadata.validation
    if validation is None:
        return "expected a validated artifact, found no validation"
    for gate in validation.gates:
        if not gate.passed:
            bound = (
                f"must be {gate.relation} {gate.threshold:g}"
                if gate.threshold is not None
                else "must be a number from 0 on"
            )
            return f"expected an artifact that passed its gates, found {gate.name} = {gate.value:g} ({bound})"
        if possible := figure_problem(gate):
            return f"expected {gate.name} to be {possible}, found {gate.value:g}"
    for name, relation in expected_gates(metadata).items():
        found = [gate for gate in validation.gates if gate.name == name]
        if len(found) != 1:
            return f"expected the gate {name} once among what was measured, found it {len(found)} times"
        if relation is not None and found[0].relation != relation:
            return f"expected a bound ({relation}) of the gate {name}, found {found[0].relation or 'none'}"
    return None


def check_validation(metadata: BuildMetadata) -> None:
    """Refuse what was never proven, what failed, what was not measured, and what changed after it was proven."""
    validation = metadata.validation
    if validation is None:
        raise ArtifactError("expected a validated artifact, found no validation; run `yap-pipeline validate`")
    if problem := gate_problem(metadata):
        remedy = "build it with another method" if not validation.passed else "prove it with `yap-pipeline validate`"
        raise ArtifactError(f"{problem}; {remedy}")
    if validation.digest != metadata.digest:
        raise ArtifactError("the files changed after validation; run `yap-pipeline validate` again")
