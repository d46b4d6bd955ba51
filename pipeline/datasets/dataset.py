"""A data set by its name: `embedded`, a file, or one on the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline import paths
from pipeline.datasets import hub_files
from pipeline.datasets.files import read_file, samples_in_lines
from pipeline.datasets.rows import Sample
from pipeline.problem import Problem
from pipeline.source import EMBEDDED
from pipeline.stages.stage import StageError
from runtime.artifact.hashes import sha256_of
from runtime.defaults import CALIBRATION_DATASET
from runtime.host.variables import names_file

HUB_NAMES = {CALIBRATION_DATASET: "garage-bAInd/Open-Platypus"}


def local_file(dataset: str) -> Path | None:
    """Return the file that a name means; none where it means another data set."""
    path = paths.named("AWQ_CALIB_DATASET", Path(dataset))
    return path if not isinstance(path, Problem) and names_file(path) else None


def identity_of(dataset: str) -> str:
    """Return what decides a data set's content, for a stage's key.

    The hub's data sets are taken as they are when first read; a rebuild takes them anew.
    """
    if dataset == EMBEDDED:
        return digest_of([list(text.encode()) for text in map(str, embedded_samples())])
    if path := local_file(dataset):
        return sha256_of(path)
    return HUB_NAMES.get(dataset, dataset)


def read_dataset(dataset: str, parquet_python: Path, odd: list[StageError] | None = None) -> tuple[str, list[Sample]]:
    """Read a data set, and return its name for the metadata with its rows.

    Args:
        dataset: as the settings name it.
        parquet_python: an interpreter with pyarrow, for data sets of the hub in that format.
        odd: gets what is wrong with each row that was left out.

    Raises:
        StageError: it cannot be read, or no row has a form that is known.
    """
    if dataset == EMBEDDED:
        return EMBEDDED, list(embedded_samples())
    if path := local_file(dataset):
        return path.name, read_file(path, odd)
    repository = HUB_NAMES.get(dataset, dataset)
    file, revision = hub_files.download(repository)
    if file.suffix == ".parquet":
        lines = hub_files.parquet_lines(file, parquet_python)
        return f"{repository}@{revision}", samples_in_lines(lines, file, odd)
    return f"{repository}@{revision}", read_file(file, odd)


def embedded_samples() -> Sequence[Sample]:
    """Return the texts that the package carries."""
    from pipeline.embedded.texts import calibration_texts

    return list(calibration_texts())


def digest_of(samples: Iterable[Sequence[int]]) -> str:
    """Return a SHA-256 over the token ids of samples, in order."""
    hasher = hashlib.sha256()
    for sample in samples:
        hasher.update(json.dumps(list(sample), separators=(",", ":")).encode() + b"\n")
    return hasher.hexdigest()
