"""The process that hashes: every byte, once, by descriptors alone; and what it says when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.artifact import ArtifactError, FileEntry
from runtime.artifact.files import hasher
from runtime.artifact.files.proof import Proof, ProofError

NEVER_S = 60
BLOCK = 64  # bytes, in the tests of what is read


def entry_of(path: str, content: bytes) -> FileEntry:
    return FileEntry(path=path, size=len(content), sha256=sha256(content).hexdigest())


@contextmanager
def proof_of(folder: Path, listed: dict[str, bytes], there: dict[str, bytes]) -> Iterator[Proof]:
    """A proof that what is there is what was listed."""
    with ExitStack() as files:
        given: list[tuple[FileEntry, int]] = []
        for path, content in there.items():
            (folder / path).write_bytes(content)
            given.append((entry_of(path, listed[path]), files.enter_context((folder / path).open("rb")).fileno()))
        proof = Proof(folder, given)
        try:
            yield proof
        finally:
            proof.close()
            proof.close()


@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_files_that_are_the_listed_ones_are_proven(tmp_path: Path, count: int) -> None:
    contents = {f"{number}.safetensors": bytes([number]) * number * 1000 for number in range(count)}
    with proof_of(tmp_path, contents, contents) as proof:
        proof.wait()
        proof.wait()  # and stay it


def test_it_is_begun_with_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's own may be moved by whoever sets a variable in that moment, and then nothing can be begun."""
    monkeypatch.setenv("SET_BY_AN_IMPORT", "1")
    begun: list[dict[str, str] | None] = []
    begin = subprocess.Popen

    def noted(*arguments: Any, **words: Any) -> Any:
        begun.append(words.get("env"))
        return begin(*arguments, **words)

    monkeypatch.setattr(subprocess, "Popen", noted)
    with proof_of(tmp_path, {"one": b"1"}, {"one": b"1"}) as proof:
        proof.wait()
    (environment,) = begun
    assert environment is not None
    assert environment.keys() <= {"PATH", "LD_LIBRARY_PATH"}


@pytest.mark.parametrize("change", [b"x", b"longer", b""], ids=["same length", "longer", "shorter"])
def test_one_other_file_among_many_is_told_and_never_forgotten(tmp_path: Path, change: bytes) -> None:
    listed = {f"{number}": bytes([65 + number]) for number in range(8)}
    with proof_of(tmp_path, listed, listed | {"5": change}) as proof:
        with pytest.raises(ArtifactError, match=f"^{tmp_path}/5: expected SHA-256 .{{12}}…, found .{{12}}…; fetch or"):
            proof.wait()
        with pytest.raises((ArtifactError, ProofError)):
            proof.wait()


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)  # reading a folder fails
    proof = Proof(tmp_path, [(entry_of("a", b"x"), descriptor)])
    try:
        with pytest.raises(ArtifactError, match="/a: expected a file that can be read, found: Is a directory"):
            proof.wait()
    finally:
        proof.close()
        os.close(descriptor)


def test_a_proof_that_was_closed_proves_nothing(tmp_path: Path) -> None:
    with proof_of(tmp_path, {"a": b"x"}, {"a": b"x"}) as proof:
        proof.close()
        with pytest.raises(ProofError, match="expected the SHA-256 of a, found that the process which hashes ended"):
            proof.wait()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=4 * BLOCK), listed=st.integers(0, 4 * BLOCK))
def test_any_file_is_hashed_as_far_as_one_byte_beside_what_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, listed: int
) -> None:
    monkeypatch.setattr(hasher, "BLOCK_BYTES", BLOCK)
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        assert hasher.sha256_of(file.fileno(), listed) == sha256(content[: listed + 1]).hexdigest()


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """The server may be killed; nobody would wait for what is hashed."""
    with (tmp_path / "large").open("wb+") as file:
        file.truncate(1 << 40)  # hours
        command = [sys.executable, "-I", "-S", hasher.__file__, str(os.getpid() + 1), "1", f"{file.fileno()}:{1 << 40}"]
        ended = subprocess.run(command, pass_fds=(file.fileno(),), capture_output=True, timeout=NEVER_S, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
