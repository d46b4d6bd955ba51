"""Plans the classifier: its window, and the label that means yes."""

from __future__ import annotations

from pipeline.plan import ToolPlan
from pipeline.plan.diagnostics import Diagnostics
from pipeline.source import SourceFacts
from pipeline.source.tool_labels import LabelsError, labels_of, named_label, positive_label, told
from runtime.deployment.classifier import window_of

POSITIVE_OPTION = "--positive-label"


def plan_tool(facts: SourceFacts | None, asked: str | None, diagnostics: Diagnostics) -> ToolPlan | None:
    """Plan the classifier; none where there is none, or its facts could not be read.

    Args:
        facts: the classifier's; none for an artifact that only chats.
        asked: the label that means yes, by name or index; none takes the one whose name says so.
        diagnostics: takes what was decided, and what is wrong.
    """
    if facts is None:
        if asked is not None:
            diagnostics.problem(POSITIVE_OPTION, "a classifier", "none", "name one, such as `embedded`")
        return None
    if facts.problems:
        return None
    before = len(diagnostics.problems)
    if not (facts.architecture or "").endswith("ForSequenceClassification"):
        found = f"{facts.architecture or 'no architecture'} in {facts.ref}"
        diagnostics.problem("TOOL_MODEL", "a ForSequenceClassification checkpoint", found, "name a classifier")
    if facts.config.get("quantization_config"):
        diagnostics.problem("TOOL_MODEL", "a classifier in float", "a quantized one", "name the float classifier")
    if facts.config.get("problem_type") == "regression":
        diagnostics.problem("TOOL_MODEL", "a classifier", "a regression (problem_type)", "name a classifier")
    # The labels of what is no classifier to be served say nothing.
    positive = _positive(facts, asked, diagnostics) if len(diagnostics.problems) == before else None
    window = window_of(facts.config)
    diagnostics.decide("classifier", facts.architecture or facts.name, f"kept in float; window of {window} tokens")
    # Where it is not certain that was told, and the plan ends; its size is still counted.
    return ToolPlan(facts, window, positive or 0)


def _positive(facts: SourceFacts, asked: str | None, diagnostics: Diagnostics) -> int | None:
    """Return the index of the label that means yes; none where it is not certain, which is told."""
    try:
        labels = labels_of(facts.config)
    except LabelsError as error:
        expected = "labels numbered from 0, one table of them"
        diagnostics.problem("TOOL_MODEL", expected, str(error), "correct id2label in its config.json")
        return None
    if len(labels) > 2:
        diagnostics.problem(
            "TOOL_MODEL", "two labels (no, yes)", f"{len(labels)}", "train the classifier on two labels"
        )
        return None
    try:
        positive = positive_label(labels) if asked is None else named_label(labels, asked)
    except LabelsError as error:
        diagnostics.problem(POSITIVE_OPTION, "a label's name or index", str(error), "name one of them")
        return None
    if positive is None:
        expected = "two labels, of which one plainly says yes to a look at the screen"
        diagnostics.problem("TOOL_MODEL", expected, told(labels), f"say which it is with {POSITIVE_OPTION}")
        return None
    others = [label for index, label in enumerate(labels) if index != positive]
    reason = POSITIVE_OPTION if asked is not None else "the one label that says yes"
    against = f"; against {others[0]!r}" if others else "; a probability of its own"
    diagnostics.decide("positive label", f"{labels[positive]!r} (index {positive})", reason + against)
    return positive
