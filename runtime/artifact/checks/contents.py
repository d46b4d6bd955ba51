"""What may be in an artifact: the folders that are named, a compiled engine's files, no file that runs."""

from __future__ import annotations

import re

from runtime.artifact import ArtifactError, BuildMetadata
from runtime.artifact.files.kinds import is_pickle
from runtime.artifact.files.paths import lies_in
from runtime.artifact.lanes import engine_of


def check_contents(metadata: BuildMetadata) -> None:
    """Refuse folders that hold none of the listed files or hold one another, and files that run when they are read."""
    chat, tool = metadata.chat, metadata.tool
    if chat is None and tool is None:
        raise ArtifactError("expected a chat model, a classifier or both, found neither; build the artifact again")
    named = {
        "tool.path": tool.path if tool else None,
        "chat.engine_path": chat.engine_path if chat else None,
        "chat.compile_cache": chat.compile_cache if chat else None,
    }
    folders = {field: path for field, path in named.items() if path is not None}
    again = "build the artifact again"
    for field, path in folders.items():
        if not any(lies_in(entry.path, path) for entry in metadata.files):
            raise ArtifactError(f"{field}: expected listed files in {path}, found none; {again}")
        for other, inner in folders.items():
            if field != other and f"{inner}/".startswith(f"{path}/"):
                raise ArtifactError(f"{other}: expected a folder apart from {field}, found {inner} in {path}; {again}")
    if chat is not None and engine_of(metadata).compiled:
        _check_ranks(metadata, chat.engine_path, chat.limits.gpus)
    cache = folders.get("chat.compile_cache")
    for entry in metadata.files:
        if is_pickle(entry.path) and not (cache and lies_in(entry.path, cache)):
            raise ArtifactError(
                f"{entry.path}: expected weights in safetensors, found a file that runs code when it is read; {again}"
            )


def _check_ranks(metadata: BuildMetadata, engine: str | None, gpus: int) -> None:
    """Refuse a compiled engine that has not one file for each GPU."""
    folder = f"{engine}/" if engine else ""
    named = {entry.path for entry in metadata.files if re.fullmatch(re.escape(folder) + r"rank\d+\.engine", entry.path)}
    wanted = {f"{folder}rank{rank}.engine" for rank in range(gpus)}
    if named != wanted:
        odd = sorted(named ^ wanted)[0]
        raise ArtifactError(
            f"expected rank0.engine to rank{gpus - 1}.engine for {gpus} GPUs, "
            f"found {'none' if odd in wanted else 'also'} {odd}; build the artifact again"
        )
