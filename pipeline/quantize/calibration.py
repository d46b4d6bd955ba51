"""Calibration: the text that a quantizer looks at, as token ids.

Conversations go through the model's own chat template. What data sets hold, and how they are read, is in
`pipeline.datasets`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.checkpoint.config_reader import read_object
from pipeline.checkpoint.shape import Shape
from pipeline.datasets import LEAST_TOKENS, Sample, identity_of, read_dataset, read_file, sample_of, training_file
from pipeline.datasets.dataset import digest_of
from pipeline.embedded.texts import heldout_texts
from pipeline.progress import Progress
from pipeline.stages.stage import StageError
from runtime.artifact import Calibration
from runtime.host.texts.words import any_of
from runtime.text.template import ChatTemplate
from runtime.text.text_tokens import control_tokens
from runtime.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pipeline.plan import CalibrationPlan

__all__ = [
    "SAMPLES_NAME",
    "calibrate",
    "digest_of",
    "identity_of",
    "reach",
    "read_dataset",
    "read_file",
    "sample_of",
    "training_file",
]

SAMPLES_NAME = "samples.jsonl"
# No token is longer on average over a sample; what lies behind would be cut off, and need not be tokenized.
CHARACTERS_PER_TOKEN = 64
# Two texts that share so many words in a row share them by no chance.
RUN_WORDS = 8


def calibrate(
    plan: CalibrationPlan, model: Path, out: Path, *, seed: int, parquet_python: Path, progress: Progress
) -> Calibration:
    """Write the samples as JSON lines of token ids.

    Args:
        plan: data set and sizes.
        model: folder whose tokenizer and chat template are used.
        out: folder that gets `samples.jsonl`.
        seed: of the choice among more rows than samples.
        parquet_python: an interpreter with pyarrow, for data sets of the hub in that format.
        progress: told of each step.

    Raises:
        StageError: the data set cannot be read, or holds nothing usable.
    """
    progress.step(f"reading the calibration set {plan.dataset}")
    odd: list[StageError] = []
    name, rows = read_dataset(plan.dataset, parquet_python, odd)
    order = list(range(len(rows)))
    if len(rows) > plan.samples:
        random.Random(seed).shuffle(order)  # noqa: S311 - a choice of samples, not a secret
    chosen: list[list[int]] = []
    length, vocabulary = reach(model, plan.sequence_length)
    encode = _encoder(model, length)
    for index in order:
        try:
            tokens = encode(rows[index])[:length]
            _check_vocabulary(tokens, vocabulary)
        except ValueError as error:
            odd.append(StageError("calibration", str(error), f"row {index + 1} of {name}"))
            continue
        if len(tokens) >= LEAST_TOKENS:
            chosen.append(tokens)
            progress.advance(len(chosen) / plan.samples)
        if len(chosen) == plan.samples:
            break
    if odd:
        # One row in a large data set is no reason to end a run.
        progress.step(f"{len(odd)} rows of the calibration set were left out, the first because: {odd[0]}")
    if not chosen:
        raise StageError(
            "calibration",
            f"expected texts of {LEAST_TOKENS} tokens or more, found none in {len(rows)} rows",
            plan.dataset,
            "choose another AWQ_CALIB_DATASET, such as embedded",
        )
    seen = held_out_share(map(load_tokenizer(model).decode, chosen), heldout_texts())
    if seen:
        progress.step(f"the calibration set holds {seen:.1%} of the held-out texts: what is measured on them flatters")
    lines = [json.dumps(tokens, separators=(",", ":")) for tokens in chosen]
    (out / SAMPLES_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Calibration(
        dataset=name,
        digest=digest_of(chosen),
        samples=len(chosen),
        sequence_length=length,
        tokens=sum(map(len, chosen)),
        held_out_share=round(seen, 6),
        left_out=len(odd),
    )


def held_out_share(samples: Iterable[str], texts: Iterable[str]) -> float:
    """Return which part of the runs of words in the held-out texts stand in the samples too, 0 to 1.

    >>> held_out_share(["So: a b c d e f g h, i"], ["A b c d e f g h."])
    1.0
    """
    held_out = {run for text in texts for run in _runs(text)}
    found: set[tuple[str, ...]] = set()
    for sample in samples:
        found.update(held_out.intersection(_runs(sample)))
    return len(found) / len(held_out) if held_out else 0.0


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return (tuple(words[at : at + RUN_WORDS]) for at in range(len(words) - RUN_WORDS + 1))


def reach(model: Path, length: int) -> tuple[int, int | None]:
    """Return the longest sample that the model has positions for, and how many tokens it knows where it says so."""
    try:
        shape = Shape.of(read_object(model / "config.json"))
    except ValueError:
        return length, None
    return min(length, shape.context or length), shape.vocabulary


def _check_vocabulary(tokens: Sequence[int], vocabulary: int | None) -> None:
    """Check that the model has an embedding for every token: tokenizers know tokens that were added later.

    Raises:
        ValueError: it lacks one, for which the quantizer would end.
    """
    if vocabulary and (most := max(tokens, default=0)) >= vocabulary:
        raise ValueError(f"expected tokens below {vocabulary}, which the model knows, found {most}")


def _encoder(model: Path, length: int) -> Callable[[Sample], list[int]]:
    """What makes the first token ids of a sample, `length` or more if it has them.

    It raises ValueError for a conversation that cannot be rendered.
    """
    most = length * CHARACTERS_PER_TOKEN
    try:
        tokenizer = load_tokenizer(model)
    except ValueError as error:
        raise StageError("calibration", str(error), model, "choose a source that has one") from error
    # The quantizer cuts samples itself; the tokenizer need not warn about long ones.
    tokenizer.model_max_length = 1 << 30

    @cache
    def template() -> ChatTemplate:
        return ChatTemplate(tokenizer, re.compile(any_of(control_tokens(tokenizer))))

    def encode(sample: Sample) -> list[int]:
        if isinstance(sample, str):
            return list(tokenizer(sample[:most])["input_ids"])
        text = template().render_whole([(turn["role"], turn["content"]) for turn in sample])
        return list(tokenizer(text[:most], add_special_tokens=False)["input_ids"])

    return encode
