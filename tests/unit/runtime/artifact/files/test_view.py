"""What is loaded of an artifact: listed files only, as they were when they were hashed, whatever is on the disk."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from runtime import artifact
from runtime.artifact import METADATA_NAME, ArtifactError, verify
from runtime.artifact.files import hasher
from runtime.artifact.files.proof import ProofError
from runtime.artifact.files.view import PREFIX, ScratchError, View, remove_leftovers
from runtime.cli import app
from tests.hub.golden import GOLDEN, copy, document, relist, reseal

# Longer than any check takes on a busy machine: what waits for a pipe waits for ever.
NEVER_S = 60
# A compile cache as torch fills one: whatever lies in a key's folder is unpickled.
CACHED = "compile_cache/inductor_cache/fxgraph/ab/cd/entry"


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own for temporary files."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@contextmanager
def opened(folder: Path, *, with_code: bool = False) -> Iterator[View]:
    """What a server loads of a folder."""
    with View(folder, artifact.read(folder), with_code=with_code) as view:
        verify.check_proven(folder, take=view.take)
        view.proven()
        yield view


def refusal_of(call: Callable[[], object]) -> str:
    """The line in which something is refused; empty where it is not."""
    try:
        call()
    except ArtifactError as error:
        return str(error)
    return ""


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listed(folder: Path) -> set[str]:
    return {entry.path for entry in artifact.read(folder).files}


def with_cache(folder: Path, **files: bytes) -> Path:
    """An artifact with a compile cache."""
    copy("cpu-int8", folder)
    for path, content in ({CACHED: pickle.dumps([1])} | files).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    relist(folder, compile_cache="compile_cache")
    return folder


def test_a_view_holds_the_listed_files_and_nothing_else(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    (folder / "README.md").write_text("a card")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.py").write_text("1/0")
    with opened(folder) as view:
        assert contents(view.folder) == {path: (GOLDEN / "cpu-int8" / path).read_bytes() for path in listed(folder)}


def test_another_process_loads_weights_from_a_view(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    with opened(folder) as view:
        (folder / "model.safetensors").unlink()
        code = "import pathlib, sys; sys.stdout.buffer.write(pathlib.Path(sys.argv[1]).read_bytes())"
        command = [sys.executable, "-c", code, str(view.folder / "model.safetensors")]
        read = subprocess.run(command, capture_output=True, check=True, timeout=NEVER_S).stdout
    assert read == (GOLDEN / "cpu-int8" / "model.safetensors").read_bytes()


# What changes between check and load


def renamed_over(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"others")
    other.replace(path)


def folder_exchanged(path: Path) -> None:
    path.parent.rename(path.parent.with_name("away"))
    path.parent.mkdir()
    path.write_bytes(b"others")


def written_over(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"others")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_off(path: Path) -> None:
    os.truncate(path, 1)


def removed(path: Path) -> None:
    path.unlink()


CHANGES = [renamed_over, folder_exchanged, written_over, cut_off, removed]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", ["config.json", "tokenizer.json", "tool/config.json", CACHED])
def test_small_files_are_those_that_were_checked(tmp_path: Path, path: str, change: Callable[[Path], None]) -> None:
    folder = with_cache(tmp_path / "a")
    before = (folder / path).read_bytes()
    with opened(folder, with_code=True) as view:
        change(folder / path)
        assert (view.folder / path).read_bytes() == before


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", ["model.safetensors", "tool/model.safetensors"])
def test_weights_are_those_that_were_checked_or_it_is_noticed(
    tmp_path: Path, path: str, change: Callable[[Path], None]
) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    before = (folder / path).read_bytes()
    with opened(folder) as view:
        change(folder / path)
        same = (view.folder / path).read_bytes() == before
        assert same is (change not in (written_over, cut_off))
        refusal = refusal_of(view.settle)
        assert same or f"{path}: expected the file that was checked, found that it changed" in refusal
        assert len(refusal.splitlines()) <= 1


def test_once_all_is_loaded_no_file_stays_open(tmp_path: Path) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    before = open_files()
    with opened(folder) as view:
        assert open_files() == before + 3, "two files of weights, and the lock"
        view.settle()
        assert open_files() == before + 1
        assert (view.folder / "config.json").is_file()
        assert not list(view.folder.rglob("*.safetensors"))
    assert open_files() == before


def test_metadata_that_change_while_they_are_checked_do_not_pass_for_signed_ones(tmp_path: Path) -> None:
    """The signature is compared with the bytes on the disk: those must be the metadata in use."""
    folder = copy("cpu-int8", tmp_path / "a")
    metadata = artifact.read(folder)
    changed = document(folder)
    changed["created_at"] = "2027-01-01T00:00:00+00:00"
    reseal(folder, changed)
    with pytest.raises(ArtifactError, match="it changed while it was checked"):
        artifact.signature._compare(folder, metadata, {})  # type: ignore[attr-defined]


# Code


@pytest.mark.parametrize("name", ["0.partial", ".x", ".x.so", "evil.pkl", "__pycache__/x.pyc"])
def test_what_is_beside_the_listed_files_of_a_compile_cache_is_refused(tmp_path: Path, name: str) -> None:
    folder = with_cache(tmp_path / "a")
    planted = (folder / CACHED).parent / name
    planted.parent.mkdir(exist_ok=True)
    planted.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    checked = CliRunner().invoke(app, ["check", str(folder)])
    assert (checked.exit_code, len(checked.stderr.splitlines())) == (65, 1)
    assert f"found {planted.relative_to(folder).as_posix()}, which build_metadata.json does not list" in checked.stderr


@pytest.mark.parametrize("with_code", [False, True])
def test_a_compile_cache_is_loaded_only_where_it_is_trusted(tmp_path: Path, with_code: bool) -> None:
    folder = with_cache(tmp_path / "a")
    with opened(folder, with_code=with_code) as view:
        assert view.leaves_out_code is not with_code
        assert view.metadata.chat is not None
        assert view.metadata.chat.compile_cache == ("compile_cache" if with_code else None)
        assert (view.folder / "compile_cache").exists() is with_code
        assert (view.folder / "config.json").is_file()


@pytest.mark.parametrize("name", ["modeling_x.py", "x.so", "lib.so.1", "tool/__pycache__/x.txt", "run.sh", "A.PY"])
def test_code_elsewhere_is_listed_and_never_loaded(tmp_path: Path, name: str) -> None:
    folder = with_cache(tmp_path / "a", **{name: b"1/0"})
    assert name in listed(folder)
    with opened(folder, with_code=True) as view:
        assert not (view.folder / name).exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tool/training_args.bin", "x.pt", "all.00.pth", "A.PKL"])
def test_pickles_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    folder = with_cache(tmp_path / "a", **{name: pickle.dumps([1])})
    checked = CliRunner().invoke(app, ["check", str(folder)])
    assert (checked.exit_code, len(checked.stderr.splitlines())) == (65, 1)
    assert f"{name}: expected weights in safetensors, found a file that runs code when it is read" in checked.stderr


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ({"compile_cache": "nothing"}, "chat.compile_cache: expected listed files in nothing, found none"),
        ({"engine_path": "config.json"}, "chat.engine_path: expected listed files in config.json, found none"),
        ({"compile_cache": "tool"}, "expected a folder apart from tool.path, found tool in tool"),
    ],
)
def test_folders_that_hold_nothing_listed_or_one_another_are_refused(
    tmp_path: Path, chat: dict[str, str], message: str
) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    relist(folder, **chat)
    with pytest.raises(ArtifactError, match=message):
        verify.check_proven(folder)


# Whatever lies there

ODD_NAMES = [
    "x",
    ".x",
    "x.partial",
    "config.json",
    "a\nb",
    "\x1b[31mred",
    "é",
    "\udcff",
    "tool",
    "x.py",
    "-",
    "x" * 255,
]
PLACES = ["", "tool/", "new/", "new/.deep/", ".cache/", ".git/"]


def socket_at(path: Path) -> None:
    """A socket; its path may be too long to bind."""
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{here}/s")
        (path.parent / "s").rename(path)
    finally:
        os.close(here)


KINDS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b"planted"),
    "empty": lambda path: path.touch(),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "socket": socket_at,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "to a file": lambda path: path.symlink_to("/etc/hostname"),
    "to a folder": lambda path: path.symlink_to("/etc"),
    "to itself": lambda path: path.symlink_to("."),
    "to a device": lambda path: path.symlink_to("/dev/zero"),
    "to what blocks": lambda path: path.symlink_to("/proc/kmsg"),
    "hard link": lambda path: path.hardlink_to(GOLDEN / "cpu-int8" / "config.json"),
    "golden": lambda path: path.symlink_to(GOLDEN / "cpu-int8" / path.name),
}
PLANTED = st.tuples(st.sampled_from(PLACES), st.sampled_from(ODD_NAMES), st.sampled_from(sorted(KINDS)))
KIND = st.sampled_from(sorted(KINDS))
REPLACED = st.tuples(st.sampled_from(["config.json", "model.safetensors", "tool/config.json"]), KIND)
OWN = st.tuples(st.sampled_from([METADATA_NAME, "model.sig", "README.md"]), KIND)


def listed_by_a_stranger(folder: Path, planted: Iterable[str]) -> None:
    """List what was planted, with right hashes where there are any."""
    changed = document(folder)
    for path in planted:
        file = folder / path
        content = file.read_bytes() if file.is_file() and file.stat().st_size else b""
        changed["files"].append({"path": path, "size": len(content), "sha256": sha256(content).hexdigest()})
    changed["files"].sort(key=lambda entry: entry["path"])
    listing = "".join("{sha256}  {size}  {path}\n".format(**entry) for entry in changed["files"])
    digest = sha256(listing.encode(errors="surrogatepass")).hexdigest()
    changed["digest"] = changed["validation"]["digest"] = digest
    reseal(folder, changed)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    planted=st.lists(PLANTED, max_size=3),
    replaced=st.lists(REPLACED, max_size=1),
    own=st.lists(OWN, max_size=1),
    lists=st.booleans(),
)
@example(planted=[(".cache/", "x", "dangling")], replaced=[], own=[(METADATA_NAME, "golden")], lists=True)
def test_whatever_lies_there_either_all_that_is_loaded_was_listed_or_it_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    planted: list[tuple[str, str, str]],
    replaced: list[tuple[str, str]],
    own: list[tuple[str, str]],
    lists: bool,
) -> None:
    folder = copy("cpu-int8", tmp_path_factory.mktemp("tree") / "a")
    made = []
    for place, name, kind in planted:
        path = folder / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(path):
            KINDS[kind](path)
            made.append(f"{place}{name}")
    for name, kind in replaced:
        (folder / name).unlink(missing_ok=True)
        KINDS[kind](folder / name)
    if lists:
        listed_by_a_stranger(folder, made)
    recorded = {entry["path"]: entry["sha256"] for entry in document(folder)["files"]}
    for name, kind in own:
        (folder / name).unlink(missing_ok=True)
        KINDS[kind](folder / name)
        if (name, kind) == (METADATA_NAME, "golden"):
            # The metadata that are read now are these, and list nothing that was planted.
            recorded = {entry["path"]: entry["sha256"] for entry in document(GOLDEN / "cpu-int8")["files"]}

    def load() -> None:
        with opened(folder) as view:
            found.update(contents(view.folder))

    found: dict[str, bytes] = {}
    with ThreadPoolExecutor(1) as pool:
        refusal = pool.submit(refusal_of, load).result(NEVER_S)
    assert refusal.isprintable()
    assert {path: sha256(content).hexdigest() for path, content in found.items()} == {
        path: recorded[path] for path in recorded if path in found
    }
    if not refusal:
        assert {path for path in recorded if not path.endswith(".py")} == set(found)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"file", "empty", "hard link", "golden"}))
@pytest.mark.parametrize("name", ["config.json", METADATA_NAME, "planted", "tool/model.safetensors"])
def test_the_command_refuses_what_is_no_file_in_one_line(tmp_path: Path, name: str, kind: str) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    (folder / name).unlink(missing_ok=True)
    KINDS[kind](folder / name)
    if (kind, name) == ("folder", "planted"):
        return  # an empty folder holds nothing to refuse
    command = [sys.executable, "-m", "runtime", "check", str(folder)]
    if kind in ("pipe", "to what blocks", "socket"):  # those that could hang a process: in one of its own
        checked = subprocess.run(command, capture_output=True, text=True, timeout=NEVER_S, check=False)
        status, told = checked.returncode, checked.stderr
    else:
        invoked = CliRunner().invoke(app, ["check", str(folder)])
        status, told = invoked.exit_code, invoked.stderr
    assert (status, len(told.splitlines())) == (65, 1), told


# The place for it


def test_a_view_leaves_nothing_behind_and_removes_what_killed_processes_left(tmp_path: Path, scratch: Path) -> None:
    metadata = artifact.read(copy("cpu-int8", tmp_path / "a"))
    killed, living = (View(tmp_path / "a", metadata, with_code=False) for _ in range(2))
    os.close(killed._lock)  # what the kernel does for a process that is gone
    assert living.folder.is_dir()
    remove_leftovers()
    assert [home.name for home in scratch.glob(f"{PREFIX}*")] == [living.folder.parent.name]
    living.close()
    living.close()
    assert list(scratch.iterdir()) == []


def test_a_place_without_room_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    metadata = artifact.read(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ScratchError, match=r"expected room for a copy of .*, found: No such file"):
        View(folder, metadata, with_code=False)


def test_a_view_is_nobody_elses(tmp_path: Path) -> None:
    with opened(copy("cpu-int8", tmp_path / "a")) as view:
        assert view.folder.parent.stat().st_mode & 0o077 == 0


def test_this_process_reads_no_weights_and_the_one_that_hashes_reads_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing sixteen gigabytes takes seconds: it must not happen twice, nor hold up what is imported beside it."""
    folder = copy("cpu-int8", tmp_path / "a")
    read: dict[int, int] = {}
    preadv, pread, counting = os.preadv, os.pread, threading.Lock()

    def count(descriptor: int, most: int) -> None:
        with counting:
            inode = os.fstat(descriptor).st_ino
            read[inode] = read.get(inode, 0) + most

    def counted_in_place(descriptor: int, into: list[memoryview], at: int) -> int:
        length = preadv(descriptor, into, at)
        count(descriptor, length)
        return length

    def counted(descriptor: int, most: int, at: int) -> bytes:
        block = pread(descriptor, most, at)
        count(descriptor, len(block))
        return block

    monkeypatch.setattr(os, "preadv", counted_in_place)
    monkeypatch.setattr(os, "pread", counted)
    with opened(folder) as view:
        view.settle()
    weights = [folder / path for path in listed(folder) if path.endswith(".safetensors")]
    assert len(weights) == 2
    assert read[(folder / "config.json").stat().st_ino] > 0
    assert {path.stat().st_ino for path in weights}.isdisjoint(read)
    for path in weights:
        with path.open("rb") as file:
            assert hasher.sha256_of(file.fileno(), path.stat().st_size) == sha256(path.read_bytes()).hexdigest()
        assert read[path.stat().st_ino] == path.stat().st_size


# Weights that are hashed while they are loaded


def tampered(path: Path) -> None:
    """Change one byte of a file, the last, and nothing else."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


@contextmanager
def taken(folder: Path) -> Iterator[View]:
    """What a server loads of a folder whose weights are not proven yet."""
    with View(folder, artifact.read(folder), with_code=False) as view:
        verify.check_proven(folder, take=view.take)
        yield view


@pytest.mark.parametrize("path", ["model.safetensors", "tool/model.safetensors"])
@pytest.mark.parametrize("end", [View.proven, View.settle], ids=["proven", "settle"])
def test_weights_of_other_bytes_are_refused_in_the_line_that_every_file_gets(
    tmp_path: Path, path: str, end: Callable[[View], None]
) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    tampered(folder / path)
    told = refusal_of(lambda: verify.check_proven(folder))
    assert f"{folder}/{path}: expected SHA-256 " in told
    with taken(folder) as view:
        assert refusal_of(lambda: end(view)) == told
        with pytest.raises((ArtifactError, ProofError)):
            view.settle()  # nor by asking again


@pytest.mark.parametrize(
    "path", ["config.json", "tokenizer.json", "chat_template.jinja", "tool/config.json", "x.engine"]
)
def test_what_is_not_numbers_alone_is_proven_before_anybody_may_read_it(tmp_path: Path, path: str) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    if not (folder / path).exists():
        (folder / path).write_bytes(b"{}")
        relist(folder)
    tampered(folder / path)
    with pytest.raises(ArtifactError, match="expected SHA-256"), taken(folder):
        pass


def test_a_process_that_hashes_and_ends_early_has_proven_nothing(tmp_path: Path) -> None:
    with taken(copy("cpu-int8", tmp_path / "a")) as view:
        view.prove()
        view._release()  # kills it
        with pytest.raises(ProofError, match="found that the process which hashes ended"):
            view.proven()
