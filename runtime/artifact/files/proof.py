"""The proof of an artifact's weights: that open files are the listed ones, found out in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from runtime.artifact import FileEntry
from runtime.artifact.files import hasher
from runtime.artifact.files.opening import ArtifactError

# Of the environment, all that an interpreter needs which reads none of it.
NEEDED = ("PATH", "LD_LIBRARY_PATH")

AGAIN = "fetch or build the artifact again"


class ProofError(Exception):
    """Whether files are the listed ones could not be found out. The message is one line."""

    text_may_be_logged = True


def expected_hash(place: str, entry: FileEntry, found: str) -> ArtifactError:
    """A file that is not the listed one.

    Args:
        place: what the file is called.
        entry: as it is listed.
        found: its SHA-256.
    """
    return ArtifactError(f"{place}: expected SHA-256 {entry.sha256[:12]}…, found {found[:12]}…; {AGAIN}")


def unreadable(place: str, error: OSError) -> ArtifactError:
    """A file that cannot be read."""
    return ArtifactError(f"{place}: expected a file that can be read, found: {error.strerror}; {AGAIN}")


class Proof:
    """Hashes files from now on, while others load them.

    Args:
        folder: where they lie, for messages.
        files: as they are listed, each with a descriptor that stays open until the proof is closed.
    """

    def __init__(self, folder: Path, files: Sequence[tuple[FileEntry, int]]) -> None:
        self._folder = folder
        self._files = {descriptor: entry for entry, descriptor in files}
        self._waiting = threading.Lock()  # several may wait
        self._process: subprocess.Popen[bytes] | None = None
        if not files:
            return
        threads = min(len(files), max(1, len(os.sched_getaffinity(0)) - 1))  # one core is left to what goes on beside
        command = [sys.executable, "-I", "-S", hasher.__file__, str(os.getpid()), str(threads)]
        self._process = subprocess.Popen(
            [*command, *(f"{descriptor}:{entry.size}" for entry, descriptor in files)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=tuple(self._files),
            # Not this process's own, which an import that sets a variable may move meanwhile: `exec` would find none.
            env={name: value for name in NEEDED if (value := os.environ.get(name)) is not None},
        )

    def wait(self) -> None:
        """Wait until every file is proven; sooner where one is not.

        Raises:
            ArtifactError: a file is not the listed one, or cannot be read.
            ProofError: the process that hashes has ended before it was through.
        """
        with self._waiting:
            if self._process is None or self._process.stdout is None or not self._files:
                return
            for line in () if self._process.stdout.closed else self._process.stdout:
                descriptor, found, *number = line.decode().split()
                entry = self._files[int(descriptor)]
                place = f"{self._folder}/{entry.path}"
                if found == hasher.FAILED:
                    code = int(number[0])
                    raise unreadable(place, OSError(code, os.strerror(code)))
                if found != entry.sha256:
                    raise expected_hash(place, entry, found)
                del self._files[int(descriptor)]
            if self._files:
                raise ProofError(
                    f"expected the SHA-256 of {next(iter(self._files.values())).path}, found that the process which "
                    f"hashes ended with {self._process.wait()}; start again"
                )
            self._process.wait()
            self._process.stdout.close()

    def close(self) -> None:
        """End it, proven or not. Safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            with self._waiting:  # who waits has heard of the end by now
                if self._process.stdout is not None:
                    self._process.stdout.close()
