"""A model's files: which documents it has, what a folder or a repository lacks, and weights that were truncated."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.checkpoint.config_reader import ConfigError, read_object
from pipeline.checkpoint.tensors import (
    INDEX_NAME,
    OTHER_WEIGHTS,
    Header,
    HeaderError,
    Tensor,
    chosen_weights,
    header_of,
    index_name,
)
from pipeline.problem import Problem

Role = Literal["CHAT_MODEL", "TOOL_MODEL"]

TOKENIZER_FILES = frozenset({"tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "tekken.json"})
# Where a repository holds a TensorRT-LLM checkpoint beside a tokenizer and the float model's config.
CHECKPOINTS = "trt-llm/checkpoints"
# What numbers the files of a model that is in several.
SHARD = re.compile(r"-\d+-of-(\d{1,9})\.safetensors$")
AGAIN = "fetch it again"
AGAIN_OR_ANOTHER = "fetch it again or choose another model"


@dataclass(frozen=True, slots=True)
class Documents:
    """The JSON documents of a model that are read first.

    Attributes:
        found: by name.
        problems: those that cannot be understood.
        weights: the files that hold the weights, each weight once.
    """

    found: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    weights: tuple[str, ...] = ()

    def get(self, name: str) -> Mapping[str, object]:
        """Return a document; an empty one where there is none."""
        return self.found.get(name, {})


def read_documents(
    role: Role, where: str, names: Mapping[str, int], wanted: tuple[str, ...], path_of: Callable[[str], Path]
) -> Documents:
    """Read the documents of a model, and choose its weights by their index.

    Args:
        role: of the model, for problems.
        where: folder or repository, for problems.
        names: of all files, with their sizes.
        wanted: the documents that are read where they are there.
        path_of: returns where a document lies on this disk, and brings it here before, where it must.
    """
    index = index_name(names)
    found: dict[str, Mapping[str, object]] = {}
    problems = []
    for name in (*wanted, *((index,) if index else ())):
        if name not in names:
            continue
        try:
            found[name] = read_object(path_of(name))
        except ConfigError as error:
            problems.append(Problem(role, f"{error.expected} in {where}/{name}", error.found, AGAIN_OR_ANOTHER))
    weights: tuple[str, ...] = ()
    try:
        weights = chosen_weights(names, found.get(index) if index else None) or checkpoint_weights(names)
    except ConfigError as error:
        problems.append(Problem(role, f"a weight map in {where}/{index}: {error.expected}", error.found, AGAIN))
    return Documents(found, tuple(problems), weights)


def missing_files(role: Role, where: str, sizes: Mapping[str, int], documents: Documents) -> list[Problem]:
    """Return what a model lacks, told from the names of its files, and what of it cannot be understood."""
    problems = list(documents.problems)
    if "config.json" not in sizes:
        problems.append(Problem(role, f"config.json in {where}", "none", "name a Hugging Face model folder"))
    if not any(name.endswith(".safetensors") and _is_read(name) for name in sizes):
        other = next((name for name in sizes if name.endswith((".bin", ".gguf", ".pt", ".pth"))), "no weights")
        problems.append(
            Problem(role, f"*.safetensors in {where}", other, "save it with `save_pretrained` or choose another model")
        )
    problems += [
        Problem(role, f"the shard {where}/{shard}", "none", AGAIN) for shard in documents.weights if shard not in sizes
    ]
    problems += _unlisted_shards(role, where, documents.weights) if index_name(sizes) is None else []
    if not TOKENIZER_FILES & sizes.keys():
        problems.append(Problem(role, f"a tokenizer in {where} (tokenizer.json)", "none", AGAIN_OR_ANOTHER))
    if role == "CHAT_MODEL" and not has_template(sizes, documents):
        problems.append(
            Problem(role, f"a chat template in {where}", "none", "choose an instruct model, or add chat_template.jinja")
        )
    return problems


def _unlisted_shards(role: Role, where: str, weights: tuple[str, ...]) -> list[Problem]:
    """Return the problem of several files without an index, which alone tells that they are all of them."""
    ours = [name for name in weights if "/" not in name and not name.startswith(OTHER_WEIGHTS)]
    counted = {int(match[1]) for name in ours if (match := SHARD.search(name))}
    most = max(counted, default=1)
    if len(ours) <= 1 and most <= 1:
        return []
    expected = f"{INDEX_NAME} in {where}" + (f", and all {most} shards" if most > len(ours) else "")
    return [Problem(role, expected, f"none, and {ours[0]} to {ours[-1]}" if len(ours) > 1 else ours[0], AGAIN)]


def index_problems(role: Role, where: str, documents: Documents, tensors: Mapping[str, Tensor]) -> list[Problem]:
    """Return the problem of an index that lists weights which no file holds: one that was cut off, or of another model.

    Args:
        role: of the model.
        where: folder or repository.
        documents: the model's, its index among them.
        tensors: of all files that the index names.
    """
    index = index_name(documents.found)
    table = documents.get(index).get("weight_map") if index else None
    lacking = sorted(name for name in table if name not in tensors) if isinstance(table, Mapping) else []
    if not lacking:
        return []
    rest = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
    return [Problem(role, f"the weights that {index} lists, in {where}", f"none for {lacking[0]}{rest}", AGAIN)]


def checkpoint_weights(names: Iterable[str]) -> tuple[str, ...]:
    """Return the weights of a TensorRT-LLM checkpoint inside a model."""
    return tuple(sorted(name for name in names if name.startswith(f"{CHECKPOINTS}/") and name.endswith(".safetensors")))


def local_tensors(
    role: Role, folder: Path, sizes: Mapping[str, int], documents: Documents
) -> tuple[dict[str, Tensor], list[Problem]]:
    """Return the tensors that a folder's weights list in their headers, and what is wrong with these files."""
    headers: list[Header | HeaderError] = []
    weights = documents.weights
    names = tuple(dict.fromkeys((*weights, *checkpoint_weights(sizes))))
    for name in names:
        try:
            headers.append(header_of(folder / name))
        except HeaderError as error:
            headers.append(error)
        except OSError as error:
            headers.append(HeaderError(error.strerror or type(error).__name__))
    problems = header_problems(role, str(folder), sizes, dict(zip(names, headers, strict=True)))
    tensors = merged_tensors(headers[: len(weights)])
    return tensors, problems or index_problems(role, str(folder), documents, tensors)


def header_problems(
    role: Role, where: str, sizes: Mapping[str, int], headers: Mapping[str, Header | HeaderError]
) -> list[Problem]:
    """Return the files that begin with no header, and those of another size than their header says."""
    problems = []
    for name, header in headers.items():
        if isinstance(header, HeaderError):
            problems.append(Problem(role, f"a safetensors header in {where}/{name}", str(header), AGAIN))
        elif header.file_size != sizes[name]:
            problems.append(Problem(role, f"{header.file_size} bytes in {where}/{name}", f"{sizes[name]}", AGAIN))
    return problems


def merged_tensors(headers: list[Header | HeaderError]) -> dict[str, Tensor]:
    """Return the tensors of all headers."""
    merged: dict[str, Tensor] = {}
    for header in headers:
        if isinstance(header, Header):
            merged.update(header.tensors)
    return merged


def _is_read(name: str) -> bool:
    """Whether weights lie where they are looked for: beside the config, or in the folder of checkpoints."""
    return "/" not in name or name.startswith(f"{CHECKPOINTS}/")


def has_template(sizes: Mapping[str, int], documents: Documents) -> bool:
    """Tell whether a chat template comes with a model."""
    beside = ("chat_template.jinja", "chat_template.json")
    if any(name in beside or name.startswith("additional_chat_templates/") for name in sizes):
        return True
    return bool(documents.get("tokenizer_config.json").get("chat_template"))
