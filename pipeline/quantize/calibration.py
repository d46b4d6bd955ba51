"""Calibration: the text that a quantizer looks at, as token ids.

A data set is `embedded`, a `.txt` file (paragraphs), a `.jsonl` file, or one on the hub. Rows hold a text, a
conversation, or an instruction with its answer; conversations go through the model's own chat template.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.progress import Progress
from pipeline.source import EMBEDDED
from pipeline.stages.stage import StageError
from runtime.artifact import Calibration, hub, hub_client
from runtime.defaults import CALIBRATION_DATASET
from runtime.text.marks.breaker import any_of
from runtime.text.template import ChatTemplate
from runtime.text.text_tokens import control_tokens
from runtime.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pipeline.plan import CalibrationPlan

HUB_NAMES = {CALIBRATION_DATASET: "garage-bAInd/Open-Platypus"}
SAMPLES_NAME = "samples.jsonl"

# Shorter texts say nothing about how activations are distributed.
LEAST_TOKENS = 8

Messages = list[dict[str, str]]
Sample = str | Messages

# Pairs of columns that hold a question and its answer, in the wild.
PAIRS = (("instruction", "output"), ("prompt", "response"), ("prompt", "completion"), ("question", "answer"))
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

_READ_PARQUET = """
import json, sys
import pyarrow.parquet as parquet
for batch in parquet.ParquetFile(sys.argv[1]).iter_batches():
    for row in batch.to_pylist():
        print(json.dumps(row, default=str))
"""


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
    encode = _encoder(model)
    for index in order:
        try:
            tokens = encode(rows[index])[: plan.sequence_length]
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
    lines = [json.dumps(tokens, separators=(",", ":")) for tokens in chosen]
    (out / SAMPLES_NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Calibration(
        dataset=name,
        digest=digest_of(chosen),
        samples=len(chosen),
        sequence_length=plan.sequence_length,
        tokens=sum(map(len, chosen)),
    )


def digest_of(samples: Iterable[Sequence[int]]) -> str:
    """Return a SHA-256 over the token ids of samples, in order."""
    hasher = hashlib.sha256()
    for sample in samples:
        hasher.update(json.dumps(list(sample), separators=(",", ":")).encode() + b"\n")
    return hasher.hexdigest()


def identity_of(dataset: str) -> str:
    """Return what decides a data set's content, for a stage's key.

    The hub's data sets are taken as they are when first read; a rebuild takes them anew.
    """
    path = Path(dataset).expanduser()
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if dataset == EMBEDDED:
        return digest_of([list(text.encode()) for text in map(str, _embedded())])
    return HUB_NAMES.get(dataset, dataset)


def read_dataset(dataset: str, parquet_python: Path, odd: list[StageError] | None = None) -> tuple[str, list[Sample]]:
    """Read a data set, and return its name for the metadata with its rows.

    Raises:
        StageError: it cannot be read, or a row has a form that is not known.
    """
    path = Path(dataset).expanduser()
    if dataset == EMBEDDED:
        return EMBEDDED, list(_embedded())
    if path.is_file():
        return path.name, read_file(path, odd)
    repository = HUB_NAMES.get(dataset, dataset)
    file, revision = _download(repository)
    if file.suffix == ".parquet":
        return f"{repository}@{revision}", _rows(_parquet_lines(file, parquet_python), file, odd)
    return f"{repository}@{revision}", read_file(file, odd)


def read_file(path: Path, odd: list[StageError] | None = None) -> list[Sample]:
    """Read the rows of a `.txt` file, one a paragraph, or of a `.jsonl` or `.json` file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StageError("calibration", f"expected UTF-8 text, found {error}", path, "convert the file") from error
    if path.suffix == ".txt":
        return [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
    if path.suffix == ".json" and text.lstrip().startswith("["):
        numbered = ((row, f"{path}[{number}]") for number, row in enumerate(json.loads(text)))
        return _samples(numbered, odd)
    # Only a line feed ends a row: a text may hold other characters that end lines.
    return _rows(text.split("\n"), path, odd)


def _rows(lines: Iterable[str], path: Path, odd: list[StageError] | None) -> list[Sample]:
    def parsed() -> Iterator[tuple[object, str]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line), f"{path}:{number}"
            except ValueError as error:
                found = f"expected a JSON object in each line, found {error}"
                raise StageError("calibration", found, f"{path}:{number}", "mend or remove the line") from error

    return _samples(parsed(), odd)


def _samples(rows: Iterable[tuple[object, str]], odd: list[StageError] | None) -> list[Sample]:
    """The samples in rows; those in no known form are left out, unless all are."""
    left_out: list[StageError] = []
    samples: list[Sample] = []
    for row, where in rows:
        try:
            samples.append(sample_of(row, where))
        except StageError as error:
            left_out.append(error)
    if left_out and not samples:
        raise left_out[0]
    if odd is not None:
        odd += left_out
    return samples


def sample_of(row: object, where: str) -> Sample:
    """Return the text or conversation in a row of a data set.

    >>> sample_of({"instruction": "Say hello.", "output": "Hello."}, "row 1")
    [{'role': 'user', 'content': 'Say hello.'}, {'role': 'assistant', 'content': 'Hello.'}]

    Raises:
        StageError: the row has none of the known forms.
    """
    if isinstance(row, str):
        return row
    if isinstance(row, Mapping):
        turns = row.get("messages") or row.get("conversations")
        if isinstance(turns, list) and turns:
            return [_message(turn, where) for turn in turns]
        if isinstance(row.get("text"), str):
            return str(row["text"])
        for question, answer in PAIRS:
            if isinstance(row.get(question), str) and isinstance(row.get(answer), str):
                given = f"{row[question]}\n\n{row['input']}" if row.get("input") else row[question]
                return [{"role": "user", "content": given}, {"role": "assistant", "content": row[answer]}]
    found = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
    raise StageError(
        "calibration",
        f"expected a row with text, messages, or instruction and output, found {found}",
        where,
        "convert the data set",
    )


def _message(turn: object, where: str) -> dict[str, str]:
    if isinstance(turn, Mapping):
        role = ROLES.get(str(turn.get("role") or turn.get("from")))
        content = turn.get("content") or turn.get("value")
        if role and isinstance(content, str):
            return {"role": role, "content": content}
    raise StageError("calibration", "expected turns with role and content", where, "convert the data set")


def _embedded() -> Sequence[Sample]:
    from pipeline.embedded.texts import calibration_texts

    return list(calibration_texts())


def _encoder(model: Path) -> Callable[[Sample], list[int]]:
    """What makes token ids of a sample; it raises ValueError for a conversation that cannot be rendered."""
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
            return list(tokenizer(sample)["input_ids"])
        text = template().render_whole([(turn["role"], turn["content"]) for turn in sample])
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return encode


def _download(repository: str) -> tuple[Path, str]:
    """Download the first file of a hub data set's training split; returns it with the data set's revision."""
    from huggingface_hub import HfApi, hf_hub_download

    remedy = "set AWQ_CALIB_DATASET=embedded or name a .txt or .jsonl file"
    try:
        token = hub.revealed(hub.token_of(os.environ))
        info = HfApi(token=token).dataset_info(repository)
        name = training_file([file.rfilename for file in info.siblings or []])
        if name is None:
            raise StageError("calibration", "expected a .jsonl, .json or .parquet file, found none", repository, remedy)
        file = hf_hub_download(repository, name, repo_type="dataset", revision=info.sha, token=token)
        return Path(file), str(info.sha)
    except hub.TokenError as error:
        raise StageError("calibration", f"expected {error.expected}, found {error.found}", error.variables) from error
    except hub_client.failures() as error:
        raise StageError("calibration", f"the hub gave no data set: {hub.reason(error)}", repository, remedy) from error


def training_file(names: Iterable[str]) -> str | None:
    """Choose the file to take of a data set: the training split rather than others, JSON lines rather than parquet."""
    usable = [name for name in sorted(names) if name.endswith((".jsonl", ".json", ".parquet"))]
    usable = [name for name in usable if not Path(name).name.startswith((".", "dataset_info"))]
    return min(usable, key=lambda name: ("train" not in name, name.endswith(".parquet"), name), default=None)


def _parquet_lines(file: Path, python: Path) -> list[str]:
    command = [str(python), "-I", "-c", _READ_PARQUET, str(file)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise StageError("calibration", f"the parquet reader ended with: {last}", file, "convert the file to .jsonl")
    return answer.stdout.split("\n")
