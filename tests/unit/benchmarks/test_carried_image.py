"""An image that is carried to a GPU host: its pieces, the driver that it meets there, and the container it runs in."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gpu.image import container, drivers, kernels, pieces, zstd

CONTAINER = Path(container.__file__)
IMAGE = {
    "id": "sha256:none",
    "config": {
        "User": "2000:0",
        "Env": ["PATH=/usr/bin:/bin", "SAID=by the image"],
        "Entrypoint": ["env"],
        "WorkingDir": "/tmp",
    },
}


@given(st.binary(max_size=4000), st.integers(1, 700), st.integers(1, 300))
def test_what_is_packed_is_joined_again(
    tmp_path_factory: pytest.TempPathFactory, stream: bytes, chunk: int, piece: int
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    count = pieces.pack(io.BytesIO(stream), lambda number: folder, level=1, chunk=chunk, piece=piece)
    assert b"".join(pieces.join(folder)) == stream
    assert all(path.stat().st_size <= piece for path in folder.glob("piece*"))
    assert len(list(folder.glob("piece*"))) == count


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A tar of one file of noise, in several pieces."""
    folder = tmp_path / "pieces"
    folder.mkdir()
    content = os.urandom(5000)
    blob = io.BytesIO()
    with tarfile.open(fileobj=blob, mode="w") as tar:
        member = tarfile.TarInfo("usr/share/noise")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    (tmp_path / "noise").write_bytes(content)
    blob.seek(0)
    pieces.pack(blob, lambda number: folder, level=1, chunk=2048, piece=1500)
    return folder


def test_a_root_file_system_is_laid_out(packed: Path, tmp_path: Path) -> None:
    size = pieces.unpack(packed, tmp_path / "root")
    assert (tmp_path / "root/usr/share/noise").read_bytes() == (tmp_path / "noise").read_bytes()
    assert size == pieces.Manifest.read(packed).size


def test_pieces_that_did_not_come_are_named(packed: Path, tmp_path: Path) -> None:
    (packed / "piece01").unlink()
    with pytest.raises(FileNotFoundError, match="found no piece01"):
        pieces.unpack(packed, tmp_path / "root")


def test_a_damaged_piece_is_noticed(packed: Path) -> None:
    damaged = bytearray((packed / "piece00").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (packed / "piece00").write_bytes(damaged)
    with pytest.raises(zstd.ZstdError):
        list(pieces.join(packed))


def test_the_driver_is_found_as_the_toolkit_finds_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second, second / "stubs"):
        folder.mkdir(parents=True)
    for name in ("libcuda.so.580.1", "libnvidia-ml.so.580.1", "libcudart.so.13", "libnvidia-egl.so.580.1"):
        (first / name).write_text("a library")
    for link, to in (("libcuda.so.1", "libcuda.so.580.1"), ("libcuda.so", "libcuda.so.1")):
        (first / link).symlink_to(to)
    (second / "libcuda.so.570.1").write_text("an older one")
    (second / "libnvidia-nvvm.so.4").write_text("a library")
    (second / "stubs/libnvidia-nvvm.so.4").write_text("to link against")
    (second / "libnvidia-cfg.so").symlink_to("stubs/libnvidia-nvvm.so.4")
    found = drivers.libraries([first, second, second / "gone"])
    assert found == {
        "libcuda.so.580.1": first / "libcuda.so.580.1",
        "libnvidia-ml.so.580.1": first / "libnvidia-ml.so.580.1",
        "libnvidia-nvvm.so.4": second / "libnvidia-nvvm.so.4",
    }


@pytest.mark.parametrize("text", ["/tmp:/cache", "/tmp:/artifact:ro"])
def test_a_bind_is_read_as_docker_writes_it(text: str) -> None:
    bind = container.Bind.parse(text)
    assert str(bind) == text
    assert bind.read_only == text.endswith(":ro")


def may_unshare() -> bool:
    """Whether this user, on this kernel, gets namespaces of its own."""
    script = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x2C020000))"
    return os.geteuid() == 0 and subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The words that run something in a root file system that has this machine's programs and nothing else."""
    if not may_unshare():
        pytest.skip("expected root, which may have namespaces of its own")
    root = tmp_path / "root"
    for name in ("usr", "dev", "proc", "sys", "tmp", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    cache = tmp_path / "cache"
    cache.mkdir()
    os.chown(cache, 2000, 0)
    image = tmp_path / "image.json"
    image.write_text(json.dumps(IMAGE))
    words = [sys.executable, str(CONTAINER), "--root", str(root), "--image", str(image)]
    return [*words, "--bind", "/usr:/usr:ro", "--bind", f"{cache}:/cache", "--env", "TOLD=by us"]


def test_a_container_is_the_images_user_without_privileges_on_a_root_that_is_read_only(
    command: list[str], tmp_path: Path
) -> None:
    script = (
        "id -u; id -g; id -G; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status | cut -f2; pwd; echo $SAID $TOLD; "
        "for at in / /usr /etc /dev /sys /tmp /cache /dev/shm; do touch $at/mark 2>/dev/null && echo $at; done; "
        "readlink /proc/1/exe >/dev/null && ls -d /proc/[0-9]* | wc -l; exit 7"
    )
    done = subprocess.run([*command, "--", "sh", "-c", script], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 7, done.stderr
    assert lines[:3] == ["2000", "0", "0"]
    assert lines[3:6] == ["0" * 16, "0" * 16, "1"]
    assert lines[6:8] == ["/tmp", "by the image by us"]
    assert lines[8:11] == ["/tmp", "/cache", "/dev/shm"]
    assert int(lines[11]) < 6  # its own processes, and none of the host's
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["mark"]
    assert list((tmp_path / "root/tmp").iterdir()) == []


def test_the_entry_point_is_the_images(command: list[str]) -> None:
    done = subprocess.run([*command, "--entrypoint", "--", "-u", "SAID"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "TOLD=by us" in done.stdout.splitlines()
    assert "SAID" not in done.stdout


# Starts what follows as a shell starts what it does not wait for.
IGNORING = ("sh", "-c", "trap '' INT TERM; exec \"$@\"", "sh")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "before", [(), ("sh", "-c", "trap '' INT TERM; exec \"$@\"", "sh")], ids=["", "ignored before"]
)
def test_a_signal_is_handed_on_and_the_status_comes_back(
    command: list[str], number: signal.Signals, before: tuple[str, ...]
) -> None:
    script = f"trap 'echo taken; exit 3' {number.name[3:]}; echo up; while :; do sleep 0.05; done"
    with subprocess.Popen([*before, *command, "--", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "up\n"
            running.send_signal(number)
            assert running.stdout.read() == "taken\n"
            assert running.wait(30) == 3
        finally:
            running.kill()


def test_a_container_ends_with_whoever_started_it(command: list[str]) -> None:
    with subprocess.Popen([*command, "--", "sh", "-c", "echo up; exec sleep 600"], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        running.kill()
        assert running.stdout.read() == b""  # the last holder of the pipe is gone


def test_a_command_that_is_not_there_is_told(command: list[str]) -> None:
    done = subprocess.run([*command, "--", "nowhere"], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "expected nowhere in /usr/bin:/bin, found none" in done.stderr


def fat_binary(*entries: tuple[int, int, bytes]) -> bytes:
    """A fat binary of (kind, architecture, content)."""
    body = b"".join(
        kernels.ENTRY.pack(kind, 0, 64, len(code), sm).ljust(64, b"\1") + code for kind, sm, code in entries
    )
    return kernels.HEADER.pack(0xBA55ED50, 1, 16, len(body)) + body


CUBIN, PTX = kernels.CUBIN, kernels.PTX


@pytest.mark.parametrize(
    ("entries", "kept"),
    [
        ([(CUBIN, 80), (CUBIN, 90), (CUBIN, 90), (CUBIN, 100), (PTX, 120)], [1, 2]),
        ([(CUBIN, 80), (CUBIN, 86), (PTX, 80)], [2]),
        ([(CUBIN, 80), (PTX, 80), (PTX, 100)], [1]),
        ([(CUBIN, 100), (CUBIN, 103)], []),
        ([(CUBIN, 90)], [0]),
    ],
)
def test_only_what_another_gpu_loads_is_blanked(entries: list[tuple[int, int]], kept: list[int]) -> None:
    codes = [bytes([65 + number]) * 24 for number in range(len(entries))]
    whole = fat_binary(*((kind, sm, code) for (kind, sm), code in zip(entries, codes, strict=True)))
    content = bytearray(b"\x7fELF" + whole + b"the end" + whole)
    before = bytes(content)
    zeros = kernels.blank(content, 90)
    for number, code in enumerate(codes):
        assert content.count(code) == (2 if number in kept else 0)
    assert zeros == 2 * 24 * (len(codes) - len(kept))
    changed = [at for at, (old, new) in enumerate(zip(before, content, strict=True)) if old != new]
    assert len(changed) == zeros
    assert all(content[at] == 0 for at in changed)


@given(st.binary(max_size=200), st.integers(0, 4000), st.integers(0, 255), st.binary(max_size=60))
def test_what_is_no_whole_fat_binary_stays_as_it_is(before: bytes, cut: int, byte: int, after: bytes) -> None:
    whole = fat_binary((CUBIN, 80, b"A" * 40), (CUBIN, 90, b"B" * 40))
    content = bytearray(before + whole[: cut % len(whole)] + after)
    assert kernels.blank(bytearray(content), 90) in (0, 40)
    header = bytearray(before + whole)
    header[len(before) + 4] = byte | 2  # another version of the format
    assert kernels.blank(bytearray(header), 90) == 0


def test_a_tar_keeps_everything_else(tmp_path: Path) -> None:
    library = fat_binary((CUBIN, 80, b"A" * 4096), (CUBIN, 90, b"B" * 4096))
    blob = io.BytesIO()
    with tarfile.open(fileobj=blob, mode="w") as tar:
        for name, content in (("lib/liba.so.1", library), ("doc/a.txt", library), ("empty", b"")):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uid, member.mtime = len(content), 0o750, 2000, 7
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("lib/liba.so")
        link.type, link.linkname = tarfile.SYMTYPE, "liba.so.1"
        tar.addfile(link)
    blob.seek(0)
    out = io.BytesIO()
    assert kernels.blanked(blob, out, 90) == {"lib/liba.so.1": 4096}
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        assert [(m.name, m.size) for m in tar] == [
            ("lib/liba.so.1", len(library)),
            ("doc/a.txt", len(library)),
            ("empty", 0),
            ("lib/liba.so", 0),
        ]
        assert (tar.getmember("doc/a.txt").uid, tar.getmember("doc/a.txt").mode) == (2000, 0o750)
        text, slim = tar.extractfile("doc/a.txt"), tar.extractfile("lib/liba.so.1")
        assert text is not None
        assert slim is not None
        assert text.read() == library
        assert slim.read() == library.replace(b"A" * 4096, bytes(4096))
