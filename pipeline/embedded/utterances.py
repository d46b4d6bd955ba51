"""Labelled utterances: requests to look at the screen, and utterances that only sound like one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Utterance:
    """A labelled example for the screenshot classifier.

    Attributes:
        turns: the user's turns, oldest first; the label belongs to the last.
        screenshot: whether the last turn asks for something that only a look at the screen can answer.
        kind: what sort of yes or no it is, for reports.
    """

    turns: tuple[str, ...]
    screenshot: bool
    kind: str


def training_utterances() -> tuple[Utterance, ...]:
    """Return the utterances that the embedded classifier is trained on."""
    return _read("utterances_train.jsonl")


def heldout_utterances() -> tuple[Utterance, ...]:
    """Return the utterances that it is measured on: other wording, never used while the training was tuned."""
    return _read("utterances_heldout.jsonl")


def _read(name: str) -> tuple[Utterance, ...]:
    text = (resources.files("pipeline.embedded") / "data" / name).read_text(encoding="utf-8")
    rows = (json.loads(line) for line in text.splitlines())
    return tuple(Utterance(tuple(row["turns"]), row["screenshot"], row["kind"]) for row in rows)
