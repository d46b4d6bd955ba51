"""Checks of a model's files: what a folder or a repository lacks, and weights that were truncated."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.problem import Problem

Role = Literal["CHAT_MODEL", "TOOL_MODEL"]

TOKENIZER_FILES = frozenset({"tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "tekken.json"})


def missing_files(
    role: Role, where: str, sizes: Mapping[str, int], documents: Mapping[str, dict[str, Any] | None]
) -> list[Problem]:
    """Return what a model lacks, told from the names of its files."""
    again = "fetch it again or choose another model"
    problems = []
    if "config.json" not in sizes:
        problems.append(Problem(role, f"config.json in {where}", "none", "name a Hugging Face model folder"))
    elif documents.get("config.json") is None:
        problems.append(Problem(role, f"a JSON object in {where}/config.json", "something else", again))
    if not any(name.endswith(".safetensors") for name in sizes):
        other = next((name for name in sizes if name.endswith((".bin", ".gguf", ".pt", ".pth"))), "no weights")
        problems.append(
            Problem(role, f"*.safetensors in {where}", other, "save it with `save_pretrained` or choose another model")
        )
    if not TOKENIZER_FILES & sizes.keys():
        problems.append(Problem(role, f"a tokenizer in {where} (tokenizer.json)", "none", again))
    if role == "CHAT_MODEL" and not has_template(sizes, documents):
        problems.append(
            Problem(role, f"a chat template in {where}", "none", "choose an instruct model, or add chat_template.jinja")
        )
    return problems


def damaged_weights(role: Role, folder: Path, sizes: Mapping[str, int]) -> list[Problem]:
    """Return the shards that the index names and the folder lacks, and the files shorter than their header says."""
    again = "fetch it again"
    problems = []
    for name in sizes:
        if not name.endswith(".safetensors.index.json"):
            continue
        index = json_object(folder / name)
        if index is None or not isinstance(index.get("weight_map"), dict):
            problems.append(Problem(role, f"a weight map in {folder / name}", "none", again))
            continue
        shards = set(index["weight_map"].values())
        problems += [
            Problem(role, f"the shard {folder / shard}", "none", again) for shard in sorted(shards - set(sizes))
        ]
    for name, size in sizes.items():
        if name.endswith(".safetensors"):
            expected = safetensors_size(folder / name)
            if expected is None:
                problems.append(Problem(role, f"a safetensors header in {folder / name}", "something else", again))
            elif expected != size:
                problems.append(Problem(role, f"{expected} bytes in {folder / name}", f"{size}", again))
    return problems


def safetensors_size(path: Path) -> int | None:
    """Return the size in bytes that a safetensors header declares; none when the header cannot be read.

    The format: eight bytes, little endian, with the header's length; the header, JSON; the tensors.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 100 << 20:
                return None
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return int(8 + length + max(ends, default=0))


def has_template(sizes: Mapping[str, int], documents: Mapping[str, dict[str, Any] | None]) -> bool:
    """Tell whether a chat template comes with a model."""
    beside = ("chat_template.jinja", "chat_template.json")
    if any(name in beside or name.startswith("additional_chat_templates/") for name in sizes):
        return True
    return bool((documents.get("tokenizer_config.json") or {}).get("chat_template"))


def json_object(path: Path) -> dict[str, Any] | None:
    """Read the JSON object in a file; none when something else is there."""
    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
