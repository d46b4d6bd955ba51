"""Labelled utterances that a user brings, to measure a classifier on: a JSONL file, a row for each utterance.

    {"text": "play some jazz", "label": "play_music"}
    {"text": "play this and take a look", "labels": ["play_music", "take_screenshot"]}
    {"turns": ["it is late", "thanks"], "labels": []}

A label is the name of a tool, or a label of the classifier by name or index; one that no tool stands for, such as
`none`, asks for nothing, as does an empty list.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.source.tool_labels import LabelsError, named_label
from runtime.artifact import SCREENSHOT_TOOL, ToolLabel
from runtime.artifact.files.opening import MAX_DOCUMENT_BYTES, read_named

# With fewer of a kind, a classifier that decides by nothing passes too often: 10 and 10 give a deviation of 0.11.
LEAST_OF_A_KIND = 10
# Rows that are told when several are wrong.
TOLD = 3

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]


class UtterancesError(ValueError):
    """The file is none of labelled utterances; the message says what was found."""


class UtteranceRow(BaseModel):
    """One line of the file. Keys that say something else are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    text: Text | None = None
    turns: Annotated[list[Text], Field(min_length=1)] | None = None
    label: str | int | None = None
    labels: list[str | int] | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> UtteranceRow:
        if (self.text is None) == (self.turns is None):
            raise ValueError("expected one of text and turns")
        if ("label" in self.model_fields_set) == (self.labels is not None):
            raise ValueError("expected one of label and labels")
        return self


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """An utterance with what it was labelled with.

    Attributes:
        line: its number in the file, from 1.
        turns: the user's turns, oldest first; the labels belong to the last.
        labels: as they are written.
    """

    line: int
    turns: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UtteranceFile:
    """A file of labelled utterances, read and not yet held against a classifier.

    Attributes:
        path: where it lies.
        sha256: of its content.
        rows: in their order.
    """

    path: Path
    sha256: str
    rows: tuple[LabelledRow, ...]


@dataclass(frozen=True, slots=True)
class ToolUtterance:
    """An utterance, and the tools that are right to be asked for after its last turn.

    Attributes:
        turns: the user's turns, oldest first.
        tools: their names; empty where none is.
    """

    turns: tuple[str, ...]
    tools: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class UtteranceSet:
    """The user's utterances, held against a classifier.

    Attributes:
        utterances: in their order.
        sha256: of their file; none where there is none.
    """

    utterances: tuple[ToolUtterance, ...] = ()
    sha256: str | None = None


NO_UTTERANCES = UtteranceSet()


def read_utterances(path: Path) -> UtteranceFile:
    """Read a file of labelled utterances.

    Raises:
        UtterancesError: it cannot be read, or a line is no labelled utterance.
    """
    try:
        content = read_named(path.expanduser(), MAX_DOCUMENT_BYTES)
        # Lines end at \n alone: a string may hold other ends of lines.
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UtterancesError(f"{path}, which is not UTF-8 (byte {error.start})") from error
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise UtterancesError(f"{path}: {why or error}") from error
    rows = tuple(_row(number, line) for number, line in enumerate(lines, 1) if line.strip())
    if not rows:
        raise UtterancesError(f"none in {path}")
    return UtteranceFile(path, hashlib.sha256(content).hexdigest(), rows)


def _row(number: int, line: str) -> LabelledRow:
    try:
        row = UtteranceRow.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the row"
        raise UtterancesError(f"line {number}: {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise UtterancesError(f"line {number}: no JSON: {error}") from error
    labels = row.labels if row.labels is not None else [] if row.label is None else [row.label]
    turns = row.turns if row.turns is not None else [str(row.text)]
    return LabelledRow(number, tuple(turns), tuple(map(str, labels)))


def utterances_for(
    file: UtteranceFile, labels: Sequence[str], tools: Sequence[ToolLabel], *, independent: bool
) -> UtteranceSet:
    """Return the utterances with the tools that their labels stand for.

    Args:
        file: what was read.
        labels: the classifier's, in the order of the logits.
        tools: those that are served.
        independent: the labels do not exclude each other.

    Raises:
        UtterancesError: a label is not known, two of a row exclude each other, or a tool has too few to be measured.
    """
    found, wrong = [], []
    for row in file.rows:
        try:
            asked = {name for label in row.labels for name in _tools_of(label, labels, tools)}
        except LabelsError as error:
            wrong.append(f"line {row.line}: {error}")
            continue
        if len(asked) > 1 and not independent:
            wrong.append(f"line {row.line}: {', '.join(sorted(asked))}, of which the classifier says one at a time")
        found.append(ToolUtterance(row.turns, frozenset(asked)))
    if wrong:
        more = f"; and {len(wrong) - TOLD} more" if len(wrong) > TOLD else ""
        raise UtterancesError("; ".join(wrong[:TOLD]) + more)
    asking = Counter(name for utterance in found for name in utterance.tools)
    for name, count in asking.items():
        for kind, these in (("ask", count), ("do not ask", len(found) - count)):
            if these < LEAST_OF_A_KIND:
                raise UtterancesError(f"{these} that {kind} for {name}, which says nothing; {LEAST_OF_A_KIND} do")
    return UtteranceSet(tuple(found), file.sha256)


@dataclass(frozen=True, slots=True)
class ToolCoverage:
    """The tools of a classifier, by what they are measured on; in the table's order.

    Attributes:
        own: on the user's utterances.
        embedded: on the embedded ones, which ask for a screenshot or for nothing.
        missing: on none: nothing asks for them.
    """

    own: tuple[str, ...]
    embedded: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def measured(self) -> bool:
        """Whether any is measured."""
        return bool(self.own or self.embedded)


def coverage_of(tools: Iterable[ToolLabel], utterances: Iterable[ToolUtterance]) -> ToolCoverage:
    """Return which tools are measured on what: those that the user's utterances ask for on them."""
    asked = {name for utterance in utterances for name in utterance.tools}
    names = [tool.name for tool in tools]
    return ToolCoverage(
        own=tuple(name for name in names if name in asked),
        embedded=tuple(name for name in names if name not in asked and name == SCREENSHOT_TOOL),
        missing=tuple(name for name in names if name not in asked and name != SCREENSHOT_TOOL),
    )


def _tools_of(label: str, labels: Sequence[str], tools: Sequence[ToolLabel]) -> set[str]:
    """Return the tool that a label stands for; none where it asks for nothing.

    Raises:
        LabelsError: it is not known, or could be two.
    """
    named = {tool.name for tool in tools if tool.name == label}
    if len(labels) == 1 and label.isdigit() and label != labels[0]:
        raise LabelsError(f"{label!r}, of a classifier with one label; write its name, or an empty list")
    try:
        index = named_label(labels, label)
    except LabelsError:
        if named:
            return named
        raise
    by_index = {tool.name for tool in tools if tool.label == index}
    if named and by_index != named:
        raise LabelsError(f"{label!r}, which is a tool, and a label that means another")
    return by_index
