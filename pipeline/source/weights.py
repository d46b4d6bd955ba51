"""Downloads of a model's large files into the hub's own cache; an interrupted download resumes.

    HF_HUB_CACHE/models--ORG--NAME/blobs/SHA256      where the client looks for a file before it downloads it
    HF_HUB_CACHE/models--ORG--NAME/refs/REVISION     the commit that a branch or tag stood for

The client downloads such a file anew when its process was killed. So they are brought here first, through our blobs
(`runtime.artifact.blobs`), and the client does what is left: small files and links. What uses the hub's cache, other
tools and a later run without network among it, finds all of it there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from pipeline.progress import Progress
from runtime.artifact import FileEntry, hub
from runtime.artifact.blobs import Blobs, watch_progress
from runtime.artifact.repository import Reference, RepositoryReader

SECONDS_BETWEEN_FRACTIONS = 0.5


def download(
    reference: Reference, sizes: Mapping[str, int], hashes: Mapping[str, str], patterns: list[str], progress: Progress
) -> None:
    """Download those large files of a model that the hub's cache lacks.

    Args:
        reference: the model at a commit.
        sizes: bytes of each file.
        hashes: SHA-256 of the large ones, which the hub keeps apart from git.
        patterns: names of the files that are wanted.

    Raises:
        ArtifactError: the hub sent other bytes than it lists.
        HfHubHTTPError, or what `hub_client.failures` lists: the hub refused, is out of reach, or the disk is full.
    """
    from huggingface_hub import HfApi

    wanted = [
        FileEntry(path=path, size=sizes[path], sha256=sha256)
        for path, sha256 in hashes.items()
        if any(fnmatch(path, pattern) for pattern in patterns)
    ]
    blobs = Blobs(_repo_cache(reference.repo) / "blobs", read_only=False)
    missing = [entry for entry in wanted if not _is_cached(blobs.path(entry), entry.size)]
    if not missing:
        return
    source = RepositoryReader(HfApi(token=hub.revealed(hub.token_of(os.environ))), reference, reference.revision)

    def report_bytes(here: int, total: int) -> None:
        progress.advance(here / total)

    with watch_progress(blobs, missing, report_bytes, SECONDS_BETWEEN_FRACTIONS):
        blobs.get_all(missing, source.url, source.headers(), progress.step)


def write_ref(reference: Reference, commit: str) -> None:
    """Write to the cache which commit a branch or tag stands for, so that it can be named without network.

    The model itself is fetched by its commit.
    """
    if reference.revision == commit:
        return
    path = _repo_cache(reference.repo) / "refs" / reference.revision
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        if path.is_file() and path.read_text("ascii").strip() == commit:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(commit, "ascii")
        partial.replace(path)
    except OSError:
        return  # a cache that can only be read still holds the model


def _repo_cache(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _is_cached(path: Path, size: int) -> bool:
    """Tell whether the cache has a file, by its size: its bytes were compared when it came."""
    return path.is_file() and path.stat().st_size == size
