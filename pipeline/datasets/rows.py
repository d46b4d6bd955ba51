"""Rows of a data set: a text, a conversation, or an instruction with its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipeline.stages.stage import StageError

# Shorter texts say nothing about how activations are distributed.
LEAST_TOKENS = 8
# A token is seldom longer, in any language; a word between spaces is never less than one.
BYTES_PER_TOKEN = 6

Messages = list[dict[str, str]]
Sample = str | Messages

# Pairs of columns that hold a question and its answer, in the wild.
PAIRS = (("instruction", "output"), ("prompt", "response"), ("prompt", "completion"), ("question", "answer"))
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
# JSON can write half a character of two halves; no tokenizer takes one.
_HALVES = re.compile("[\ud800-\udfff]")


def sample_of(row: object, where: str) -> Sample:
    """Return the text or conversation in a row of a data set.

    >>> sample_of({"instruction": "Say hello.", "output": "Hello."}, "row 1")
    [{'role': 'user', 'content': 'Say hello.'}, {'role': 'assistant', 'content': 'Hello.'}]

    Raises:
        StageError: the row has none of the known forms.
    """
    if isinstance(row, str):
        return _whole(row)
    if isinstance(row, Mapping):
        turns = row.get("messages") or row.get("conversations")
        if isinstance(turns, list) and turns:
            return [_message(turn, where) for turn in turns]
        if isinstance(row.get("text"), str):
            return _whole(str(row["text"]))
        for question, answer in PAIRS:
            if isinstance(row.get(question), str) and isinstance(row.get(answer), str):
                given = f"{row[question]}\n\n{row['input']}" if row.get("input") else row[question]
                return [
                    {"role": "user", "content": _whole(given)},
                    {"role": "assistant", "content": _whole(row[answer])},
                ]
    found = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
    raise StageError(
        "calibration",
        f"expected a row with text, messages, or instruction and output, found {found or 'nothing'}",
        where,
        "convert the data set",
    )


def likely_tokens(sample: Sample) -> int:
    """Return how many tokens a sample has, as far as its words and bytes tell without a tokenizer."""
    texts = [sample] if isinstance(sample, str) else [turn["content"] for turn in sample]
    return sum(max(len(text.split()), len(text.encode()) // BYTES_PER_TOKEN) for text in texts)


def _message(turn: object, where: str) -> dict[str, str]:
    if isinstance(turn, Mapping):
        role = ROLES.get(str(turn.get("role") or turn.get("from")))
        content = turn.get("content") or turn.get("value")
        if role and isinstance(content, str):
            return {"role": role, "content": _whole(content)}
    raise StageError("calibration", "expected turns with role and content", where, "convert the data set")


def _whole(text: str) -> str:
    return _HALVES.sub("\ufffd", text)
