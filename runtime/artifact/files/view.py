"""What is loaded of an artifact: a private folder that holds listed files only, as they were when they were hashed.

    HOME/.lock      held as long as this process, or one that it started, lives
    HOME/artifact/  the view; engines, tokenizers and classifiers are given this folder and no other

Small files are copied, and the copy is what is hashed: whatever is written to the artifact later, nobody sees. Weights
are too large for that. Each stays open from before it was hashed until it is loaded, and the view holds a link to the
open file, so that no other one can take its place; that nobody wrote into it meanwhile is looked at when all is loaded
(`settle`). Code is in the view where the compile cache is, and nowhere else.

Weights that are numbers and nothing else are hashed while they are loaded, which takes as long: `prove` begins that,
`proven` waits for it, and nothing is settled before.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from runtime.artifact import ArtifactError, BuildMetadata, FileEntry
from runtime.artifact.files.kinds import is_code, is_numbers, is_weights
from runtime.artifact.files.paths import lies_in
from runtime.artifact.files.proof import Proof
from runtime.artifact.hashes import blocks_of, sha256_of_open

PREFIX = "yap-artifact-"
LOCK = ".lock"

# What a write to a file changes, and a read does not.
Identity = tuple[int, int, int, int, int]


class ScratchError(Exception):
    """The folder for temporary files cannot be used. The message is one line."""

    text_may_be_logged = True


@dataclass(frozen=True, slots=True)
class _OpenWeights:
    """A file of weights that is open until it is loaded."""

    entry: FileEntry
    link: Path
    descriptor: int
    identity: Identity


class View:
    """The files of one artifact, for those who load it; empty until `hashes.verify_files` fills it through `take`.

    Args:
        source: where the artifact lies, for messages.
        metadata: of the artifact.
        with_code: whether what was compiled ahead of time may be loaded: the artifact's signature is checked, or the
            operator trusts it.

    Attributes:
        folder: what is given to engines.
        metadata: what may be loaded; names no compile cache where that is left out.

    Raises:
        ScratchError: there is no place for temporary files.
    """

    def __init__(self, source: Path, metadata: BuildMetadata, *, with_code: bool) -> None:
        self._source = source
        chat = metadata.chat
        self._cache = chat.compile_cache if chat is not None else None  # also where it is left out
        self._with_code = with_code
        if chat is not None and self._cache is not None and not with_code:
            metadata = metadata.model_copy(update={"chat": chat.model_copy(update={"compile_cache": None})})
        self.metadata = metadata
        self._open: list[_OpenWeights] = []  # weights that are not loaded yet
        self._proof: Proof | None = None  # none before it is begun
        self._proving = threading.Lock()  # who proves begins it once
        self._closing = threading.Lock()  # files are taken in several threads
        with _writing(Path("TMPDIR")):
            remove_leftovers()
            self._home = Path(tempfile.mkdtemp(prefix=PREFIX))  # to be removed
            self._lock = _locked(self._home)  # open as long as it is not
            self.folder = self._home / "artifact"
            self.folder.mkdir()

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def leaves_out_code(self) -> bool:
        """Whether the artifact holds code that was compiled ahead of time and is not loaded."""
        return self._cache is not None and not self._with_code

    def take(self, entry: FileEntry, descriptor: int) -> str | None:
        """Read an open file to its end, put what was read into the view where it belongs, and return its SHA-256.

        None for weights that `proven` will tell of.

        Raises:
            ArtifactError: there is no way to hand an open file to an engine.
            ScratchError: no room for a copy.
        """
        compiled = self._cache is not None and lies_in(entry.path, self._cache)
        if compiled and self._with_code:
            return self._copy(entry, descriptor)
        if compiled or is_code(entry.path):
            return sha256_of_open(entry, descriptor)
        return self._hold(entry, descriptor) if is_weights(entry.path) else self._copy(entry, descriptor)

    def _copy(self, entry: FileEntry, descriptor: int) -> str:
        target, hasher = self.folder / entry.path, hashlib.sha256()
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = target.open("xb")
        try:
            for block in blocks_of(entry, descriptor):
                hasher.update(block)
                with _writing(target):
                    copy.write(block)
        finally:
            with _writing(target):
                copy.close()
        return hasher.hexdigest()

    def _hold(self, entry: FileEntry, descriptor: int) -> str | None:
        own, link = os.dup(descriptor), self.folder / entry.path
        with self._closing:
            self._open.append(_OpenWeights(entry, link, own, _identity(own)))
        found = None if is_numbers(entry.path) else sha256_of_open(entry, own)
        with _writing(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            # Other processes too open the very file that was hashed by this name, whatever its folder holds by then.
            link.symlink_to(f"/proc/{os.getpid()}/fd/{own}")
        try:
            same = os.path.samestat(link.stat(), os.fstat(own))
        except OSError:
            same = False
        if not same:
            raise ArtifactError("expected /proc, by which weights are handed to the engine, found none; mount it")
        return found

    def prove(self) -> None:
        """Begin to hash the weights that were taken and are not hashed yet, beside whatever is done from now on."""
        self._begun()

    def proven(self) -> None:
        """Wait until every file that was taken is proven; begin where that was not done.

        Raises:
            ArtifactError: a file of weights is not the listed one, or was written to since it was opened.
            ProofError: that could not be found out.
        """
        try:
            self._begun().wait()
        except ArtifactError:
            self._require_unchanged()  # says more, where somebody writes to it
            raise

    def _begun(self) -> Proof:
        with self._proving:
            if self._proof is None:
                late = [(held.entry, held.descriptor) for held in self._open if is_numbers(held.entry.path)]
                self._proof = Proof(self._source, late)
            return self._proof

    def settle(self) -> None:
        """Say that everything is loaded: no file is needed any more but the copies. Waits until all is proven.

        Raises:
            ArtifactError: a file of weights is not the listed one, or was written to since it was opened to be hashed.
            ProofError: that could not be found out.
        """
        self.proven()
        self._require_unchanged()
        self._release()

    def _require_unchanged(self) -> None:
        changed = [held.entry.path for held in self._open if _identity(held.descriptor) != held.identity]
        if changed:
            raise ArtifactError(
                f"{changed[0]}: expected the file that was checked, found that it changed while it was loaded; "
                "see that nothing writes to the artifact, then start again"
            )

    def close(self) -> None:
        """Remove the view. Safe to call twice."""
        self._release()
        shutil.rmtree(self._home, ignore_errors=True)
        with self._closing:
            lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def _release(self) -> None:
        with self._proving:
            if self._proof is not None:
                self._proof.close()
        with self._closing:
            held, self._open = self._open, []
        for one in held:
            one.link.unlink(missing_ok=True)
            os.close(one.descriptor)


def _identity(descriptor: int) -> Identity:
    """What shows that a file was written to: the time of its last change cannot be set, unlike that of its content."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ScratchError(
            f"expected room for a copy of the artifact's small files, found: {error.strerror} ({place}); "
            "make room, or set TMPDIR elsewhere"
        ) from error


def _locked(home: Path) -> int:
    """A lock in a new folder, which appears under its name when it is held."""
    new = home / f"{LOCK}.new"
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.rename(home / LOCK)
    return descriptor


def remove_leftovers() -> None:
    """Remove the views of processes that were killed."""
    for home in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if home.lstat().st_uid != os.geteuid():
                continue
            descriptor = os.open(home / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(home, ignore_errors=True)
            finally:
                os.close(descriptor)
