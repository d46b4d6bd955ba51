"""Fetching an artifact by name: `hf:org/repo@revision`.

The revision is resolved to a commit first, and everything is read at that commit. Then the metadata, and from it
whether this machine may serve the artifact, before a weight is downloaded. Files are kept by their hashes
(`blobs.py`), so a new revision downloads what changed, and linked into a folder that holds exactly one artifact:

    CACHE/artifacts/ORG--REPO/COMMIT/whole/         the artifact
    CACHE/artifacts/ORG--REPO/COMMIT/LABEL/         the same for a compiled engine, one for each that was needed
    CACHE/artifacts/ORG--REPO/refs/REVISION         the commit that a branch or tag stood for, for times without network

A folder under its final name is complete. A pinned commit that is in the cache needs no network at all.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from runtime import artifact
from runtime.artifact import (
    METADATA_NAME,
    ArtifactError,
    BuildMetadata,
    FileEntry,
    hub,
    hub_client,
    labels,
    signature,
)
from runtime.artifact.blobs import Blobs, watch_progress
from runtime.artifact.checks.gates import check_validation
from runtime.artifact.checks.machine_fit import check_machine
from runtime.artifact.checks.sharing import AS_BUILT, Sharing
from runtime.artifact.repository import Reference, RepositoryReader, hub_errors_translated
from runtime.host.machine import Machine

if TYPE_CHECKING:
    from huggingface_hub import HfApi

COMMIT = re.compile(r"[0-9a-f]{40}")
WHOLE = "whole"
SECONDS_BETWEEN_REPORTS = 10.0
MIB = 2**20


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where fetched artifacts are kept unless told otherwise."""
    base = environment.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "yap-runtime"


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Brings artifacts to this machine.

    Attributes:
        cache: the folder of files and artifacts.
        machine: decides which engine is taken, and whether the artifact is of use here.
        public_key: when given, an artifact without a fitting signature is refused before its weights are downloaded.
        report: told in one line what happens.
        sharing: how many GPUs shall share the chat model.
        environment: variables that may hold the token.
    """

    cache: Path
    machine: Machine
    report: hub.Report
    public_key: Path | None = None
    sharing: Sharing = AS_BUILT
    # Not shown: a token may stand in it.
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def fetch(self, text: str) -> Path:
        """The folder of an artifact, downloaded unless it is in the cache.

        Raises:
            ArtifactError: one line for every way in which it can fail.
        """
        reference = Reference.parse(text)
        # It logs every address, and those of the storage behind the hub carry a signature that is as good as a key.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        home = self.cache / "artifacts" / reference.repo.replace("/", "--")
        with hub_errors_translated(reference):
            commit = self._commit(reference, home)
            if (found := self._cached(home / commit)) is not None:
                self.report(f"{reference} is in the cache at commit {commit}")
                return found
            self._require_network(reference)
            self.report(f"fetching {reference} at commit {commit}")
            found = self._fetch_commit(reference, commit, home / commit)
            if not COMMIT.fullmatch(reference.revision):
                self._record_commit(home, reference.revision, commit)
            return found

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi, get_token

        return HfApi(token=hub.revealed(hub.token_of(self.environment)) or get_token() or False)

    def _require_network(self, reference: Reference) -> None:
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise ArtifactError(
                f"{reference}: expected a copy in {self.cache}, found none, and HF_HUB_OFFLINE is set; "
                "fetch it once with the network, or name a folder"
            )

    def _commit(self, reference: Reference, home: Path) -> str:
        """The commit that a revision stands for; without the hub, the one that it stood for when it was fetched."""
        from huggingface_hub.errors import OfflineModeIsEnabled

        if COMMIT.fullmatch(reference.revision):
            return reference.revision
        remembered = home / "refs" / quote(reference.revision, safe="")
        known = remembered.read_text("ascii", "replace").strip() if remembered.is_file() else ""
        known = known if COMMIT.fullmatch(known) else ""
        try:
            info = hub.with_retries(
                lambda: self._api().model_info(reference.repo, revision=reference.revision, timeout=10.0),
                self.report,
                tries=2 if known else None,
            )
        except hub_client.failures() as error:
            # A hub that answers no is believed; one that does not answer is not needed for what is here.
            if not known or not (isinstance(error, OfflineModeIsEnabled) or hub.is_transient(error)):
                raise
            self.report(
                f"{reference}: the hub is out of reach; taking commit {known}, which it was when it was fetched"
            )
            return known
        # A folder is named by it.
        if not COMMIT.fullmatch(commit := str(info.sha)):
            raise ArtifactError(f"{reference}: expected a commit from the hub, found {commit!r:.80}; try again")
        return commit

    def _record_commit(self, home: Path, revision: str, commit: str) -> None:
        path = home / "refs" / quote(revision, safe="")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(commit, "ascii")
        partial.replace(path)

    def _cached(self, commit: Path) -> Path | None:
        """The complete artifact for this machine, where it is here. One with a missing file or another size is not."""
        held = sorted(path.name for path in commit.iterdir() if path.is_dir()) if commit.is_dir() else []
        names = [name for name in held if not name.startswith(".")]
        if WHOLE not in names:
            try:
                names = [labels.pick(names, self.machine, self.sharing.tensor)] if names else []
            except ArtifactError:
                return None
        for name in names[:1] if WHOLE not in names else [WHOLE]:
            folder = commit / name
            try:
                metadata = artifact.read(folder)
                if all((folder / entry.path).stat().st_size == entry.size for entry in metadata.files):
                    return folder
            except (ArtifactError, OSError):
                continue
        return None

    def _fetch_commit(self, reference: Reference, commit: str, home: Path) -> Path:
        home.mkdir(parents=True, exist_ok=True)
        with (home / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (found := self._cached(home)) is not None:
                return found  # another process was faster
            staging = home / ".partial"
            if staging.exists():
                shutil.rmtree(staging)
            staging.mkdir()
            source = RepositoryReader(self._api(), reference, commit)
            metadata, prefix = self._describe(source, staging)
            self._check_servable(metadata, staging)
            name = artifact.engine_label(metadata) or WHOLE
            self._download(source, metadata, staging)
            folder = home / name
            if folder.exists():
                shutil.rmtree(folder)
            staging.rename(folder)
            self.report(f"{reference}{f' ({prefix})' if prefix else ''} is complete at {folder}")
            return folder

    def _describe(self, source: RepositoryReader, staging: Path) -> tuple[BuildMetadata, str]:
        """The metadata and signature of the artifact for this machine, and where in the repository they lie."""
        source.download(METADATA_NAME, staging, self.report)
        metadata, prefix = artifact.read(staging), ""
        if (label := artifact.engine_label(metadata)) is not None:
            chosen = labels.pick({label, *source.engine_labels(self.report)}, self.machine, self.sharing.tensor)
            if chosen != label:
                prefix = f"{labels.ENGINES_FOLDER}/{chosen}/"
                source.download(f"{prefix}{METADATA_NAME}", staging, self.report)
                metadata = artifact.read(staging)
                # A folder is named by it.
                if (found := artifact.engine_label(metadata)) != chosen:
                    raise ArtifactError(
                        f"{source.reference}: expected metadata of the engine {chosen} in {prefix}, found those of "
                        f"{found}; use another revision, or have it published again"
                    )
        source.download_if_present(f"{prefix}{signature.SIGNATURE_NAME}", staging, self.report)
        return metadata, prefix

    def _check_servable(self, metadata: BuildMetadata, staging: Path) -> None:
        """Refuse what could not be served anyway, before it costs a download."""
        if self.public_key is not None:
            signature.verify(staging, metadata, self.public_key)
        check_validation(metadata)
        check_machine(metadata, self.machine, self.sharing)

    def _download(self, source: RepositoryReader, metadata: BuildMetadata, staging: Path) -> None:
        blobs = Blobs(self.cache / "blobs")
        missing = sum(entry.size - blobs.bytes_present(entry) for entry in metadata.files)
        free = shutil.disk_usage(self.cache).free
        if missing > free:
            raise ArtifactError(
                f"{source.reference}: expected {missing / MIB:,.0f} MiB free in {self.cache}, found {free / MIB:,.0f}; "
                "make room, or set ARTIFACT_CACHE_DIR elsewhere"
            )
        with report_progress(blobs, metadata.files, self.report):
            blobs.get_all(metadata.files, source.url, source.headers(), self.report)
        for entry in metadata.files:
            link(blobs.path(entry), staging / entry.path)


def link(blob: Path, path: Path) -> None:
    """Put a verified file into a folder: the same file under a second name where the file system can, else a copy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.hardlink_to(blob)
    except OSError:
        shutil.copyfile(blob, path)


@contextmanager
def report_progress(blobs: Blobs, files: Sequence[FileEntry], report: hub.Report) -> Iterator[None]:
    """Report now and then how much has arrived, and how fast."""
    began, before = time.monotonic(), sum(map(blobs.bytes_present, files))

    def on_progress(here: int, total: int) -> None:
        rate = (here - before) / (time.monotonic() - began)
        report(f"{here / MIB:,.0f} of {total / MIB:,.0f} MiB ({here / total:.0%}), {rate / MIB:,.1f} MiB/s")

    with watch_progress(blobs, files, on_progress, SECONDS_BETWEEN_REPORTS):
        yield
