"""A repository on the hub: what it holds, and what a push changes in it.

A repository of the trt lane may hold engines for several GPUs. They share the tokenizer and the other files outside of
`trt-llm/engines/`; each has its own metadata, and its own signature, in its folder:

    build_metadata.json                              of the artifact that was pushed last
    trt-llm/engines/LABEL/build_metadata.json        of the artifact that this engine belongs to
    trt-llm/engines/LABEL/model.sig

Pushing a second engine changes nothing that the first one's metadata lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.stages.stage import StageError
from runtime import artifact
from runtime.artifact import METADATA_NAME, ArtifactError, BuildMetadata, FileEntry
from runtime.artifact.labels import ENGINES_FOLDER
from runtime.artifact.repository import Reference, RepositoryReader
from runtime.artifact.signature import SIGNATURE_NAME

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the hub.

    Attributes:
        size: bytes.
        blob_id: git's id of its content.
        sha256: of its content; known for LFS files alone.
    """

    size: int
    blob_id: str
    sha256: str | None

    def has_content(self, content: bytes) -> bool:
        """Tell whether the file has this content."""
        if self.size != len(content):
            return False
        return self.sha256 == hashlib.sha256(content).hexdigest() if self.sha256 else self.blob_id == blob_id(content)


@dataclass(frozen=True, slots=True)
class RemoteRepository:
    """A repository at one commit.

    Attributes:
        repo: `org/name`.
        commit: the commit's id.
        private: whether the repository is private now.
        files: all files, by path.
        metadata: at its root; none where there is none, or none that can be read.
        engines: metadata of each compiled engine, by label.
    """

    repo: str
    commit: str
    private: bool
    files: Mapping[str, RemoteFile]
    metadata: BuildMetadata | None
    engines: Mapping[str, BuildMetadata]


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes that a push makes to a repository.

    Attributes:
        files: listed files to send.
        documents: small files to write, in this order.
        deletes: paths to remove.
    """

    files: tuple[FileEntry, ...]
    documents: Mapping[str, bytes]
    deletes: tuple[str, ...]

    @property
    def sends(self) -> int:
        """The number of files that are written."""
        return len(self.files) + len(self.documents)


def blob_id(content: bytes) -> str:
    """Return git's id of a file: SHA-1 over a header and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_repository(api: HfApi, repo: str, revision: str) -> RemoteRepository:
    """Read the files and the metadata that a repository holds at a revision.

    Raises:
        HfHubHTTPError: the hub refused.
    """
    from huggingface_hub.hf_api import RepoFile

    info = api.model_info(repo, revision=revision)
    commit = str(info.sha)
    files = {
        entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
        for entry in api.list_repo_tree(repo, recursive=True, revision=commit)
        if isinstance(entry, RepoFile)
    }
    engines = {}
    for label in labels_in(files):
        if (found := _metadata(api, repo, commit, f"{ENGINES_FOLDER}/{label}/{METADATA_NAME}")) is not None:
            engines[label] = found
    root = _metadata(api, repo, commit, METADATA_NAME) if METADATA_NAME in files else None
    return RemoteRepository(repo, commit, bool(info.private), files, root, engines)


def labels_in(paths: Mapping[str, RemoteFile]) -> list[str]:
    """Return the labels of the engines that have metadata of their own."""
    prefix, suffix = f"{ENGINES_FOLDER}/", f"/{METADATA_NAME}"
    inner = [path[len(prefix) : -len(suffix)] for path in paths if path.startswith(prefix) and path.endswith(suffix)]
    return sorted(label for label in inner if "/" not in label)


def _metadata(api: HfApi, repo: str, commit: str, path: str) -> BuildMetadata | None:
    with TemporaryDirectory(prefix="yap-remote-") as folder:
        RepositoryReader(api, Reference(repo, commit), commit).download(path, Path(folder), lambda line: None)
        try:
            return artifact.read(Path(folder))
        except ArtifactError:
            return None  # what cannot be read describes nothing that could be kept or removed


def changes_to_push(
    folder: Path, metadata: BuildMetadata, remote: RemoteRepository, documents: Mapping[str, bytes]
) -> Changes:
    """Compare an artifact with its repository, and return what has to be sent and removed.

    Files that neither this artifact nor the one before listed are left alone: they are someone else's.

    Raises:
        StageError: the repository holds engines of another model.
    """
    label = artifact.engine_label(metadata)
    others = {name: entry for name, entry in remote.engines.items() if name != label}
    mine = {entry.path: entry for entry in metadata.files}
    kept: set[str] = set()
    for name, other in others.items():
        kept |= {entry.path for entry in other.files}
        kept |= {f"{ENGINES_FOLDER}/{name}/{file}" for file in (METADATA_NAME, SIGNATURE_NAME)}
        _check_shared_files(metadata, mine, name, other, remote.repo)
    before = {METADATA_NAME, SIGNATURE_NAME}
    before |= {entry.path for old in (remote.metadata, remote.engines.get(label or "")) if old for entry in old.files}
    if label:
        before |= {f"{ENGINES_FOLDER}/{label}/{file}" for file in (METADATA_NAME, SIGNATURE_NAME)}
    stale = (before & remote.files.keys()) - mine.keys() - documents.keys() - kept
    return Changes(
        files=tuple(entry for entry in metadata.files if not _is_same(remote.files.get(entry.path), entry, folder)),
        documents={
            path: content
            for path, content in documents.items()
            if not ((there := remote.files.get(path)) and there.has_content(content))
        },
        deletes=tuple(sorted(stale)),
    )


def _is_same(there: RemoteFile | None, entry: FileEntry, folder: Path) -> bool:
    if there is None or there.size != entry.size:
        return False
    # The hub tells git's id alone of what is not in LFS, which is small.
    return there.sha256 == entry.sha256 if there.sha256 else there.has_content((folder / entry.path).read_bytes())


def _check_shared_files(
    metadata: BuildMetadata, mine: Mapping[str, FileEntry], name: str, other: BuildMetadata, repo: str
) -> None:
    remedy = "push to another repository, or compile this engine from the checkpoint that is published there"
    if metadata.lane != other.lane:
        expected = f"an artifact of the lane {other.lane} beside its engine {name}"
        raise StageError(
            "push", f"expected {expected}, found one of {metadata.lane}", repo, "push to another repository"
        )
    for entry in other.files:
        here = mine.get(entry.path)
        if here and here.sha256 != entry.sha256:
            what = f"expected the {entry.path} that the engine {name} shares, found another"
            raise StageError("push", what, repo, remedy)


def mismatch(metadata: BuildMetadata, remote: RemoteRepository) -> str | None:
    """Return the first listed file that the hub does not hold as it should; none when all is there."""
    for entry in metadata.files:
        there = remote.files.get(entry.path)
        if there is None:
            return f"{entry.path} is missing"
        if there.size != entry.size or there.sha256 not in {None, entry.sha256}:
            return f"{entry.path} differs"
    if remote.metadata is None or remote.metadata.digest != metadata.digest:
        return f"{METADATA_NAME} differs"
    return None
