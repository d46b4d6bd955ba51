"""Plans the classifier: its window, and the label that means yes, or the table of its tools."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pipeline.checkpoint.config_reader import ConfigError
from pipeline.checkpoint.tensors import Tensor
from pipeline.plan import BuildRequest, ToolPlan
from pipeline.plan.diagnostics import Diagnostics
from pipeline.source import SourceFacts
from pipeline.source.tool_labels import (
    LabelsError,
    Meaning,
    is_unnamed,
    labels_of,
    meaning_of,
    named_label,
    positive_label,
    told,
)
from pipeline.source.utterance_file import (
    NO_UTTERANCES,
    UtteranceFile,
    UtterancesError,
    UtteranceSet,
    coverage_of,
    utterances_for,
)
from runtime.artifact import SCREENSHOT_TOOL, ToolLabel, served_tools
from runtime.deployment.classifier import is_multi_label, window_of

POSITIVE_OPTION = "--positive-label"
TABLE_OPTION = "--tool-label"
UTTERANCES_OPTION, UTTERANCES_VARIABLE = "--tool-utterances", "TOOL_UTTERANCES"
# Fewer than the model's own marks and a few words.
SHORTEST_WINDOW = 8
# The matrix of a classifier's last layer, as transformers' classes name it.
HEADS = (
    *("score.weight", "score.out_proj.weight", "classifier.weight", "classifier.out_proj.weight"),
    *("classification_head.out_proj.weight", "logits_proj.weight", "sequence_summary.summary.weight"),
)
TOOL_NAME = re.compile(r"[\w.:-]{1,64}")


def plan_tool(
    facts: SourceFacts | None,
    request: BuildRequest,
    diagnostics: Diagnostics,
    file: UtteranceFile | UtterancesError | None = None,
) -> ToolPlan | None:
    """Plan the classifier; none where there is none, or its facts could not be read.

    Args:
        facts: the classifier's; none for an artifact that only chats.
        request: says which label means yes or asks for which tool; else the labels' names do.
        diagnostics: takes what was decided, and what is wrong.
        file: the user's labelled utterances, or why they could not be read; none where none are named.
    """
    if isinstance(file, UtterancesError):
        where = UTTERANCES_OPTION if request.tool_utterances is not None else UTTERANCES_VARIABLE
        diagnostics.problem(where, "a JSONL file of labelled utterances", str(file), "see docs/quality.md")
    if facts is None:
        for option, given in (
            (POSITIVE_OPTION, request.positive_label),
            (TABLE_OPTION, request.tool_labels),
            (UTTERANCES_OPTION, request.tool_utterances),
        ):
            if given:
                diagnostics.problem(option, "a classifier", "none", "name one, such as `embedded`")
        return None
    if facts.problems:
        return None
    before = len(diagnostics.problems)
    try:
        architecture = facts.architecture
    except ConfigError as error:
        expected = f"{error.expected} in {error.key} of the config.json of {facts.ref}"
        diagnostics.problem("TOOL_MODEL", expected, error.found, "correct it, or name another classifier")
        return None
    if not (architecture or "").endswith("ForSequenceClassification"):
        found = f"{architecture or 'no architecture'} in {facts.ref}"
        diagnostics.problem("TOOL_MODEL", "a ForSequenceClassification checkpoint", found, "name a classifier")
    if facts.config.get("quantization_config"):
        diagnostics.problem("TOOL_MODEL", "a classifier in float", "a quantized one", "name the float classifier")
    if facts.config.get("problem_type") == "regression":
        diagnostics.problem("TOOL_MODEL", "a classifier", "a regression (problem_type)", "name a classifier")
    positive: int | None = 0
    tools: tuple[ToolLabel, ...] = ()
    # The labels of what is no classifier to be served say nothing.
    if len(diagnostics.problems) == before:
        positive, tools = _labels(facts, request, diagnostics)
    window = window_of(facts.config)
    if window < SHORTEST_WINDOW:
        expected = f"a classifier that reads {SHORTEST_WINDOW} tokens or more"
        diagnostics.problem("TOOL_MODEL", expected, f"a window of {window} in {facts.ref}", "name another classifier")
    diagnostics.decide("classifier", architecture or facts.name, f"kept in float; window of {window} tokens")
    if len(diagnostics.problems) > before:
        return ToolPlan(facts, window, positive, tools)
    utterances = _utterances(facts, served_tools(positive, tools), request, file, diagnostics)
    return ToolPlan(facts, window, positive, tools, utterances)


def _utterances(
    facts: SourceFacts,
    tools: Sequence[ToolLabel],
    request: BuildRequest,
    file: UtteranceFile | UtterancesError | None,
    diagnostics: Diagnostics,
) -> UtteranceSet:
    """Return the user's utterances as the classifier's tools; tell which tools are measured on what."""
    utterances = NO_UTTERANCES
    if isinstance(file, UtteranceFile):
        where = UTTERANCES_OPTION if request.tool_utterances is not None else UTTERANCES_VARIABLE
        try:
            utterances = utterances_for(file, labels_of(facts.config), tools, independent=is_multi_label(facts.config))
        except UtterancesError as error:
            expected = f"labels of {', '.join(tool.name for tool in tools)}, or of none of them"
            diagnostics.problem(where, expected, str(error), f"correct {file.path}")
            return NO_UTTERANCES
    coverage = coverage_of(tools, utterances.utterances)
    if isinstance(file, UtteranceFile) and coverage.own:
        diagnostics.decide(
            "measured", ", ".join(coverage.own), f"on {len(utterances.utterances)} utterances of {file.path}"
        )
    if coverage.embedded:
        diagnostics.decide("measured", ", ".join(coverage.embedded), "on the embedded utterances")
    if coverage.missing:
        how = f"no utterance asks for them; name a file of labelled ones in {UTTERANCES_OPTION}"
        diagnostics.decide("not measured", ", ".join(coverage.missing), how)
    return utterances


def _labels(
    facts: SourceFacts, request: BuildRequest, diagnostics: Diagnostics
) -> tuple[int | None, tuple[ToolLabel, ...]]:
    """Return the label that means yes, and the table of several tools; what is not certain is told."""
    asked, table, independent = request.positive_label, request.tool_labels, is_multi_label(facts.config)
    try:
        labels = labels_of(facts.config)
    except LabelsError as error:
        expected = "labels numbered from 0, one table of them"
        diagnostics.problem("TOOL_MODEL", expected, str(error), "correct id2label in its config.json")
        return 0, ()
    outputs = _outputs(facts.tensors)
    if outputs not in (None, len(labels)):
        expected = f"a label for each of the {outputs} outputs of {facts.ref}"
        next_step = "correct id2label in its config.json: the model cannot be loaded so"
        diagnostics.problem("TOOL_MODEL", expected, f"{len(labels)} labels", next_step)
        return 0, ()
    if asked is not None and table:
        diagnostics.problem(TABLE_OPTION, f"one of {TABLE_OPTION} and {POSITIVE_OPTION}", "both", "keep one")
        return 0, ()
    try:
        if asked is not None:
            return _one(labels, named_label(labels, asked), POSITIVE_OPTION, diagnostics), ()
        tools = _table(labels, table) if table else ()
    except LabelsError as error:
        option = TABLE_OPTION if table else POSITIVE_OPTION
        diagnostics.problem(option, "a label's name or index", str(error), "name one of them")
        return 0, ()
    plain = independent and not {Meaning.NO, Meaning.UNCLEAR} & {meaning_of(label) for label in labels}
    if not tools and (len(labels) > 2 or (plain and len(labels) > 1)):
        tools = _named_tools(labels, independent=independent)
        if not tools:
            expected = "two labels, of which one says yes, or labels that name tools" + (
                "" if independent else " and one that means none of them, such as `none`"
            )
            diagnostics.problem(
                "TOOL_MODEL", expected, told(labels), f"say which label is which tool with {TABLE_OPTION}"
            )
            return 0, ()
    if tools:
        return _several(labels, tools, independent, TABLE_OPTION if table else "as the labels are named", diagnostics)
    positive = positive_label(labels)
    if positive is None:
        expected = "two labels, of which one plainly says yes to a look at the screen"
        diagnostics.problem("TOOL_MODEL", expected, told(labels), f"say which it is with {POSITIVE_OPTION}")
        return 0, ()
    return _one(labels, positive, "the one label that says yes", diagnostics), ()


def _outputs(tensors: Mapping[str, Tensor]) -> int | None:
    """Return how many outputs a classifier's head has; none where the weights do not plainly tell."""
    rows = [tensors[name].shape[0] for name in HEADS if name in tensors and len(tensors[name].shape) == 2]
    return rows[0] if len(rows) == 1 else None


def _one(labels: Sequence[str], positive: int, reason: str, diagnostics: Diagnostics) -> int:
    others = [repr(label) for index, label in enumerate(labels) if index != positive]
    against = f"; against {', '.join(others)}" if others else "; a probability of its own"
    diagnostics.decide("positive label", f"{labels[positive]!r} (index {positive})", reason + against)
    return positive


def _several(
    labels: Sequence[str], tools: tuple[ToolLabel, ...], independent: bool, reason: str, diagnostics: Diagnostics
) -> tuple[int | None, tuple[ToolLabel, ...]]:
    shown = ", ".join(f"{tool.name} ({labels[tool.label]!r}, index {tool.label})" for tool in tools)
    kind = "each has a probability of its own" if independent else "one of them at a time"
    diagnostics.decide("tools", shown, f"{reason}; {kind}")
    # A runtime that knows no tables may serve the screenshot alone, by the probability that it would compute too.
    look = next((tool.label for tool in tools if tool.name == SCREENSHOT_TOOL), None)
    return None if independent else look, tools


def _named_tools(labels: Sequence[str], *, independent: bool) -> tuple[ToolLabel, ...]:
    """Return the tools that the labels name; none where that is not plain.

    A label that says no is the answer that asks for no tool. Where labels exclude each other there must be one: without
    it every utterance would ask for some tool.
    """
    meanings = [meaning_of(label) for label in labels]
    look = positive_label(labels)
    names = {
        index: SCREENSHOT_TOOL if index == look else re.sub(r"\s+", "_", label.strip())
        for index, label in enumerate(labels)
        if meanings[index] is not Meaning.NO
    }
    unclear = Meaning.UNCLEAR in meanings or meanings.count(Meaning.YES) > 1 or any(map(is_unnamed, labels))
    wrong = len(set(names.values())) < len(names) or not all(map(TOOL_NAME.fullmatch, names.values()))
    if unclear or wrong or (not independent and len(names) == len(labels)):
        return ()
    return tuple(ToolLabel(label=index, name=name) for index, name in names.items())


def _table(labels: Sequence[str], rows: Sequence[str]) -> tuple[ToolLabel, ...]:
    """Return the table that a user wrote.

    Raises:
        LabelsError: a row is none, or two rows speak of one label or one tool.
    """
    tools = []
    for row in rows:
        match = re.fullmatch(r"(?P<label>.+)=(?P<tool>[\w.:-]{1,64})(@(?P<threshold>0(\.\d+)?|1(\.0+)?|\.\d+))?", row)
        if match is None:
            raise LabelsError(f"{row!r}, which is no LABEL=TOOL or LABEL=TOOL@THRESHOLD")
        threshold = float(match["threshold"]) if match["threshold"] else None
        tools.append(ToolLabel(label=named_label(labels, match["label"]), name=match["tool"], threshold=threshold))
    for values in ([tool.label for tool in tools], [tool.name for tool in tools]):
        if len(set(values)) < len(values):
            raise LabelsError(f"one of {values} twice")
    return tuple(tools)
