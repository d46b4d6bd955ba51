"""Files by their SHA-256: downloaded once, whole, verified, and resumed where a killed download stopped.

    CACHE/blobs/HASH            a verified file; read-only, because folders of artifacts link to it
    CACHE/blobs/HASH.partial    what has arrived so far
    CACHE/blobs/HASH.lock       held by the process that downloads it

The hub client's own cache starts a file over when its process was killed; these files are gigabytes, so this one does
not. The bytes still come through the client (`http_get`), with its retries and its handling of tokens and redirects.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime import hub
from runtime.artifact import ArtifactError, FileEntry
from runtime.hashes import sha256_of

HTTP_RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True, slots=True)
class Blobs:
    """The folder of verified files."""

    folder: Path

    def path(self, entry: FileEntry) -> Path:
        """Where a file is, or will be."""
        return self.folder / entry.sha256

    def arrived(self, entry: FileEntry) -> int:
        """Bytes of a file that are here already."""
        for path in (self.path(entry), self._partial(entry)):
            try:
                return min(path.stat().st_size, entry.size)
            except FileNotFoundError:
                continue
        return 0

    def get(self, entry: FileEntry, url: str, headers: Mapping[str, str], say: Callable[[str], None]) -> Path:
        """Bring a file here, unless it is, and return its path. What is here is hashed again.

        Raises:
            ArtifactError: the hub's file is not the one that the metadata lists.
            HfHubHTTPError, httpx.HTTPError: the hub refused, or is out of reach.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        target, partial = self.path(entry), self._partial(entry)
        with (self.folder / f"{entry.sha256}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.is_file():
                if sha256_of(target) == entry.sha256:
                    return target
                target.unlink()
            # A partial file that was damaged shows at its end; one fresh start tells that from a hub with other bytes.
            for _ in range(2):
                hub.persistently(lambda: _download(url, partial, entry, headers), say)
                if partial.stat().st_size == entry.size and sha256_of(partial) == entry.sha256:
                    partial.chmod(0o444)
                    partial.rename(target)
                    return target
                partial.unlink()
        raise ArtifactError(
            f"{entry.path}: expected SHA-256 {entry.sha256[:12]}…, found other bytes on the hub; "
            "use another revision, or publish the artifact again"
        )

    def _partial(self, entry: FileEntry) -> Path:
        return self.folder / f"{entry.sha256}.partial"


def _download(url: str, partial: Path, entry: FileEntry, headers: Mapping[str, str]) -> None:
    """Add what is missing to a partial file. A file that is shorter or longer on the hub ends without an error."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Silent(tqdm):  # type: ignore[misc]
        """The server reports in its log; a bar would tear it up."""

        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **{**options, "disable": True})

    if partial.exists() and partial.stat().st_size > entry.size:
        partial.unlink()
    with partial.open("ab") as file:
        if (present := file.tell()) < entry.size:
            try:
                http_get(
                    url,
                    file,
                    resume_size=present,
                    headers=dict(headers),
                    expected_size=entry.size,
                    tqdm_class=Silent,
                )
            except HfHubHTTPError as error:
                if error.response.status_code != HTTP_RANGE_NOT_SATISFIABLE:
                    raise
            except OSError as error:
                if error.errno is not None:
                    raise
