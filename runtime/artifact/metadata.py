"""The artifact: a folder that is complete, checked and self-describing.

Three nouns. `BuildMetadata` is `build_metadata.json`, the contract between the pipeline that writes it and the runtime
that reads it. A `FileEntry` is one file of the folder with its size and SHA-256. The `digest` is one hash over the
sorted entries (`hashes.py`): two artifacts with the same digest hold the same bytes. `docs/artifact.md` describes every
field.

Writers refuse unknown keys, readers tolerate them, so that an older runtime can read what a newer pipeline wrote within
one schema version.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from runtime.artifact.files.opening import ArtifactError, read_document
from runtime.artifact.files.paths import CARD_NAME as CARD_NAME
from runtime.artifact.files.paths import METADATA_NAME as METADATA_NAME
from runtime.artifact.files.paths import SIGNATURE_NAME as SIGNATURE_NAME
from runtime.artifact.files.paths import ArtifactPath, listing_problem
from runtime.artifact.schema.chat_model import ChatModel
from runtime.artifact.schema.entry import Entry
from runtime.artifact.schema.proof import Validation
from runtime.artifact.schema.tool_model import ToolModel

SCHEMA_VERSION: Literal[1] = 1

LaneName = Literal["trt", "vllm", "cpu"]


class Platform(Entry):
    """The machine on which the artifact was built and proven."""

    gpu_name: str | None = Field(default=None, description="as the driver names it; none on a CPU")
    gpu_count: int = Field(default=0, description="GPUs that the process saw")
    sm: int | None = Field(default=None, description="compute capability as an integer: 90 for Hopper; none on a CPU")
    gpu_memory_bytes: int | None = Field(default=None, description="memory of one GPU")
    driver: str | None = Field(default=None, description="version of the NVIDIA driver")
    cuda: str | None = Field(default=None, description="version of CUDA that PyTorch was built for")
    python: str = Field(description="version of Python")
    machine: str = Field(description="processor architecture, such as x86_64")
    packages: dict[str, str] = Field(default_factory=dict, description="versions that decide the result")


class StageRecord(Entry):
    """One stage of the run that made the artifact."""

    name: str
    key: str
    seconds: float = Field(ge=0)


class FileEntry(Entry):
    """One file: POSIX path relative to the artifact, size in bytes, SHA-256 in hex."""

    path: ArtifactPath
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class BuildMetadata(Entry):
    """`build_metadata.json`, whole."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="readers refuse another one")
    lane: LaneName = Field(description="which locks and images the artifact belongs to")
    engine: str = Field(description="vllm, trt, or trt-pytorch: what loads the chat model")
    created_at: str = Field(description="RFC 3339, UTC")
    chat: ChatModel | None = Field(default=None, description="none in a tool-only artifact")
    tool: ToolModel | None = Field(default=None, description="none in a chat-only artifact")
    platform: Platform = Field(description="the machine on which it was built and proven")
    stages: tuple[StageRecord, ...] = Field(default=(), description="the stages of the run that made it")
    validation: Validation | None = Field(default=None, description="none before it was validated; not served then")
    files: tuple[FileEntry, ...] = Field(description="every file of the artifact, by path")
    digest: str = Field(description="one hash over the sorted files")

    @model_validator(mode="after")
    def _one_folder(self) -> BuildMetadata:
        if problem := listing_problem(entry.path for entry in self.files):
            raise ValueError(problem)
        return self

    def write(self, folder: Path) -> None:
        """Write the file whole or not at all, with its seal.

        Raises:
            OSError: it cannot be written; what was there is there, and nothing beside it.
        """
        document = self.model_dump(mode="json")
        document["seal"] = seal_of(document)
        target = folder / METADATA_NAME
        partial = target.with_suffix(".json.partial")
        partial.unlink(missing_ok=True)  # whatever lies there: a link would be written through
        try:
            with partial.open("xb") as file:
                file.write(encode(document))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def encode(document: dict[str, object]) -> bytes:
    """The metadata as bytes. There is one way to write it, so that a reader notices duplicate keys and cut-off ends."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode(errors="surrogatepass")


def seal_of(document: dict[str, object]) -> str:
    """SHA-256 over the metadata itself in canonical JSON, without the seal.

    The digest covers the files; the seal covers what is said about them, so that a limit or a GPU name that was edited
    by hand is noticed. Neither keeps an attacker out: that is what signing is for.
    """
    body = {key: value for key, value in document.items() if key != "seal"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def same(one: BuildMetadata, other: BuildMetadata) -> bool:
    """Whether two read metadata say the same; a figure that is no number is equal to itself here."""
    return encode(one.model_dump(mode="json")) == encode(other.model_dump(mode="json"))


def engine_label(metadata: BuildMetadata) -> str | None:
    """The label of the compiled engine, the last part of its folder's path; none where nothing was compiled."""
    path = metadata.chat.engine_path if metadata.chat else None
    return path.rstrip("/").rpartition("/")[2] if path else None


def read(folder: Path) -> BuildMetadata:
    """Read and check the metadata alone; no other file is opened.

    Raises:
        ArtifactError: the file is missing, is not JSON, has another schema version, or does not fit the schema.
    """
    path = folder / METADATA_NAME
    try:
        return parse(read_document(path), path)
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder}: expected an artifact with {METADATA_NAME}, found none; make one with `yap-pipeline run`"
        ) from None
    except OSError as error:
        raise ArtifactError(
            f"{path}: expected a file that can be read, found: {error.strerror}; check the path and who may read it"
        ) from error


def parse(content: bytes, path: Path) -> BuildMetadata:
    """Check what stands in the file of metadata at a path.

    Raises:
        ArtifactError: as `read` does.
    """
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: expected JSON, found {error}; fetch or build the artifact again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: expected schema version {SCHEMA_VERSION}, found {version!r:.50}; use the runtime that matches it"
        )
    if raw.get("seal") != seal_of(raw) or encode(raw) != content:
        raise ArtifactError(f"{path}: its seal does not match its content, so it was edited; build the artifact again")
    try:
        return BuildMetadata.model_validate_json(json.dumps(raw), extra="ignore", strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path}: field {where}: {first['msg'].removeprefix('Value error, ')}; build the artifact again"
        ) from error
