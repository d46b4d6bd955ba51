"""A data set on the hub: which of its files is taken, and how it comes here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from pipeline.stages.stage import StageError
from runtime.artifact import hub, hub_client

ENDINGS = (".jsonl", ".json", ".parquet")
REMEDY = "set AWQ_CALIB_DATASET=embedded or name a .txt or .jsonl file"

_READ_PARQUET = """
import json, sys
import pyarrow.parquet as parquet
for batch in parquet.ParquetFile(sys.argv[1]).iter_batches():
    for row in batch.to_pylist():
        print(json.dumps(row, default=str))
"""


def find(repository: str) -> tuple[str, str]:
    """Return the name of the file that is taken of a data set, and the data set's revision.

    Raises:
        StageError: the hub gives no such data set, or it holds no such file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        info = HfApi(token=hub.revealed(hub.token_of(os.environ))).dataset_info(repository)
    except hub.TokenError as error:
        raise StageError("calibration", f"expected {error.expected}, found {error.found}", error.variables) from error
    except hub_client.failures(HFValidationError) as error:
        raise StageError("calibration", f"the hub gave no data set: {hub.reason(error)}", repository, REMEDY) from error
    name = training_file([file.rfilename for file in info.siblings or []])
    if name is None:
        raise StageError("calibration", "expected a .jsonl, .json or .parquet file, found none", repository, REMEDY)
    return name, str(info.sha)


def download(repository: str) -> tuple[Path, str]:
    """Download the first file of a data set's training split; returns it with the data set's revision.

    Raises:
        StageError: the hub gives none.
    """
    from huggingface_hub import hf_hub_download

    name, revision = find(repository)
    try:
        token = hub.revealed(hub.token_of(os.environ))
        file = hf_hub_download(repository, name, repo_type="dataset", revision=revision, token=token)
    except hub_client.failures() as error:
        raise StageError("calibration", f"the hub gave no data set: {hub.reason(error)}", repository, REMEDY) from error
    return Path(file), revision


def training_file(names: Iterable[str]) -> str | None:
    """Choose the file to take of a data set: the training split rather than others, JSON lines rather than parquet."""
    usable = [name for name in sorted(names) if name.endswith(ENDINGS)]
    usable = [name for name in usable if not Path(name).name.startswith((".", "dataset_info"))]
    return min(usable, key=lambda name: ("train" not in name, name.endswith(".parquet"), name), default=None)


def parquet_lines(file: Path, python: Path) -> list[str]:
    """Return the rows of a parquet file as lines of JSON, read by an interpreter that has pyarrow.

    Raises:
        StageError: it cannot be read.
    """
    command = [str(python), "-I", "-c", _READ_PARQUET, str(file)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise StageError("calibration", f"the parquet reader ended with: {last}", file, "convert the file to .jsonl")
    return answer.stdout.split("\n")
