"""The content of a model's folder: what of it decides answers, by its bytes, and what nothing loads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from pipeline.checkpoint.config_reader import ConfigError
from pipeline.checkpoint.tensors import weights_in
from pipeline.source.source_facts import CONTENT_SUFFIXES, is_content
from runtime.artifact import ArtifactError
from runtime.artifact.hashes import sha256_of

SHA256 = re.compile(r"[0-9a-f]{64}")


def content_hash(folder: Path, expected: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a SHA-256 over the names, sizes and hashes of the files that decide a model's answers.

    Every byte is read each time: a disk that fails, and an edit that puts the time back, leave size and time as they
    were. Hashing runs in threads: hashlib releases the GIL.

    Args:
        folder: the model.
        expected: SHA-256 of files by name, as the hub lists them; a file in the hub's cache is named by its own too.

    Raises:
        ArtifactError: a file has another hash.
        OSError: a file cannot be read.
    """
    taken = _weights_of(folder)
    templates = sorted(folder.glob("additional_chat_templates/*.jinja"))
    paths = [path for path in (*sorted(folder.iterdir()), *templates) if path.is_file()]
    paths = [path for path in paths if path.name.endswith(CONTENT_SUFFIXES)]
    paths = [path for path in paths if is_content(path.relative_to(folder).as_posix(), taken)]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(sha256_of, paths))
    lines = []
    for path, sha256 in zip(paths, found, strict=True):
        name, blob = path.relative_to(folder).as_posix(), path.resolve()
        named = blob.name if blob.parent.name == "blobs" and SHA256.fullmatch(blob.name) else sha256
        if (right := expected.get(name, named)) != sha256:
            raise ArtifactError(
                f"{blob}: expected SHA-256 {right[:12]}…, found {sha256[:12]}…: it changed since it came; "
                "remove it and fetch it again"
            )
        lines.append(f"{sha256}  {path.stat().st_size}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def held_twice(folder: Path) -> frozenset[str]:
    """Return the weights of a folder, and their indices, that nothing loads: the same again in another form."""
    taken = _weights_of(folder)
    names = (path.name for path in folder.iterdir() if ".safetensors" in path.name)
    return frozenset(name for name in names if not is_content(name, taken))


def _weights_of(folder: Path) -> tuple[str, ...]:
    """Return the files that hold a folder's weights; all that could, where its index cannot be read."""
    try:
        return weights_in(folder)
    except ConfigError:
        return tuple(path.name for path in folder.glob("*.safetensors"))
