"""Files by their SHA-256: downloaded once, whole, verified, and resumed where a killed download stopped.

    FOLDER/HASH            a verified file; read-only, because folders of artifacts link to it
    FOLDER/HASH.partial    what has arrived so far
    FOLDER/HASH.lock       held by the process that downloads it

The hub client's own cache starts a file over when its process was killed; these files are gigabytes, so this one does
not. The client does the tokens and the redirects (`hub_client`); the loop over the blocks is here.
"""

from __future__ import annotations

import fcntl
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runtime.artifact import ArtifactError, FileEntry, hub, hub_client
from runtime.artifact.hashes import sha256_of
from runtime.host.supervision import attempt

DOWNLOADS_AT_ONCE = 4
PARTIAL_CONTENT = 206
# A connection that brought as much before it broke is worth another at once; of shorter ones only a few are tried.
MIN_PROGRESS_BYTES = 1 << 20


class DownloadStoppedError(Exception):
    """Another file's download failed, or the user asked for an end."""


@dataclass(frozen=True, slots=True)
class Blobs:
    """The folder of verified files.

    Attributes:
        folder: holds a file for each SHA-256, named by it.
        read_only: nobody may change a file through one of the other names that it gets.
    """

    folder: Path
    read_only: bool = True

    def path(self, entry: FileEntry) -> Path:
        """Where a file is, or will be."""
        return self.folder / entry.sha256

    def bytes_present(self, entry: FileEntry) -> int:
        """Bytes of a file that are here already."""
        for path in (self.path(entry), self._partial(entry)):
            try:
                return min(path.stat().st_size, entry.size)
            except FileNotFoundError:
                continue
        return 0

    def get_all(
        self, entries: Sequence[FileEntry], url: Callable[[str], str], headers: Mapping[str, str], report: hub.Report
    ) -> None:
        """Bring files here, a few at a time. The first that fails ends the others, which can be resumed.

        Args:
            url: gives the address of a file by its path.
            report: is told why a download is tried again.

        Raises:
            ArtifactError, or what `hub_client.failures` lists: as `get` does.
        """
        # One download for each content: files that are equal share it.
        unique = {entry.sha256: entry for entry in entries}.values()
        stopped = threading.Event()
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            running = [pool.submit(self.get, entry, url(entry.path), headers, report, stopped) for entry in unique]
            try:
                for future in as_completed(running):
                    future.result()
            except BaseException:
                stopped.set()
                for future in running:
                    future.cancel()
                raise

    def get(
        self,
        entry: FileEntry,
        url: str,
        headers: Mapping[str, str],
        report: hub.Report,
        stopped: threading.Event | None = None,
    ) -> Path:
        """Bring a file here, unless it is, and return its path. What is here is hashed again.

        Args:
            stopped: when set, the download ends where it is.

        Raises:
            ArtifactError: the hub's file is not the one that the metadata lists.
            HfHubHTTPError, or what `hub_client.http_errors` lists: the hub refused, or is out of reach.
            DownloadStoppedError: it was told to end.
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
                hub.with_retries(lambda: _download(url, partial, entry, headers, stopped or threading.Event()), report)
                if partial.stat().st_size == entry.size and sha256_of(partial) == entry.sha256:
                    if self.read_only:
                        partial.chmod(0o444)
                    partial.rename(target)
                    return target
                partial.unlink()
        raise ArtifactError(
            f"{entry.path}: expected SHA-256 {entry.sha256[:12]}…, found other bytes on the hub; "
            "use another revision, or have it published again"
        )

    def _partial(self, entry: FileEntry) -> Path:
        return self.folder / f"{entry.sha256}.partial"


def _download(url: str, partial: Path, entry: FileEntry, headers: Mapping[str, str], stopped: threading.Event) -> None:
    """Add what is missing to a partial file. A file that is shorter or longer on the hub ends without an error."""
    if partial.exists() and partial.stat().st_size > entry.size:
        partial.unlink()
    with partial.open("ab") as file:
        while (present := file.tell()) < entry.size:
            try:
                return _append(url, file, entry, headers, stopped)
            except hub_client.transport_errors():
                if file.tell() < present + MIN_PROGRESS_BYTES:
                    raise


def _append(url: str, file: BinaryIO, entry: FileEntry, headers: Mapping[str, str], stopped: threading.Event) -> None:
    """Append what one connection brings."""
    present = file.tell()
    with hub_client.stream(url, headers, start=present) as body:
        if body.status == hub_client.RANGE_NOT_SATISFIABLE:
            return
        if present and _start_of(body) != present:
            # Not the part that was asked for: a server without ranges sends the whole file, which is as good.
            file.seek(0)
            file.truncate()
            if body.status == PARTIAL_CONTENT:
                return _append(url, file, entry, headers, stopped)
        for block in body.blocks:
            if stopped.is_set():
                raise DownloadStoppedError(entry.path)
            file.write(block)
            if file.tell() > entry.size:
                return


def _start_of(body: hub_client.StreamedResponse) -> int:
    """The position of an answer's first byte in the file."""
    if body.status != PARTIAL_CONTENT:
        return 0
    stated = re.match(r"bytes (\d+)-", body.headers.get("Content-Range", ""))
    return int(stated[1]) if stated else -1


@contextmanager
def watch_progress(
    blobs: Blobs, entries: Sequence[FileEntry], on_progress: Callable[[int, int], None], interval_s: float
) -> Iterator[None]:
    """Tell now and then how many bytes have arrived, and of how many."""
    total = sum(entry.size for entry in entries)
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(interval_s):
            attempt("download_watch", lambda: on_progress(sum(map(blobs.bytes_present, entries)), total))

    watcher = threading.Thread(target=watch, name="download-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
