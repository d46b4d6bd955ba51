"""Checks a data set before any work: what would fail hours later, or minutes, is told by the plan."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline import paths
from pipeline.datasets import hub_files
from pipeline.datasets.dataset import HUB_NAMES
from pipeline.datasets.files import SUFFIXES, read_text, samples_in
from pipeline.datasets.rows import LEAST_TOKENS, likely_tokens
from pipeline.problem import Problem
from pipeline.source import EMBEDDED
from pipeline.stages.stage import StageError

VARIABLE = "AWQ_CALIB_DATASET"
OTHER = "choose another, such as embedded"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What is read of a file before any work. Behind it, odd lines are left out and counted.
CHECKED_BYTES = 64 << 20


def dataset_problem(dataset: str) -> Problem | None:
    """Return why a data set cannot be calibrated on; none when it can, as far as can be told before any work.

    A file is read, up to a size; of a data set on the hub, the list of its files.
    """
    if dataset == EMBEDDED or dataset in HUB_NAMES:
        return None
    path = paths.named(VARIABLE, Path(dataset))
    if isinstance(path, Problem):
        return path
    if path.suffix not in SUFFIXES:
        # What is neither a file nor such a name the plan tells in its own words.
        return _hub_problem(dataset) if HUB_ID.fullmatch(dataset) and not paths.exists(path) else None
    return _file_problem(path)


def _file_problem(path: Path) -> Problem | None:
    if not paths.exists(path):
        return None
    odd: list[StageError] = []
    try:
        samples = samples_in(read_text(path, CHECKED_BYTES), path, odd)
    except StageError as error:
        return _told(error)
    if broken := [error for error in odd if "JSON" in error.what]:
        return _told(broken[0], more=len(broken) - 1)
    if not samples:
        return Problem(VARIABLE, "texts to calibrate on", f"none in {path}", OTHER)
    if all(likely_tokens(sample) < LEAST_TOKENS for sample in samples):
        found = f"none of {len(samples)} in {path} that has as many"
        return Problem(VARIABLE, f"texts of {LEAST_TOKENS} tokens or more", found, OTHER)
    return None


def _hub_problem(dataset: str) -> Problem | None:
    try:
        hub_files.find(dataset)
    except StageError as error:
        return _told(error)
    return None


def _told(error: StageError, more: int = 0) -> Problem:
    """Word what a stage would fail with as a problem of the request."""
    expected, _, found = error.what.partition(", found ")
    others = f" and {more} lines more" if more else ""
    expected = expected.removeprefix("expected ") if found else "a data set that can be read"
    return Problem(VARIABLE, expected, f"{found or error.what} in {error.where}{others}", error.next_step)
