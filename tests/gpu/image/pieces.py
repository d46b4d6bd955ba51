#!/usr/bin/env python3
"""Cuts a stream into compressed pieces that are carried one at a time, and joins them again with all processors.

The stream, a tar, is cut into chunks, each compressed by itself, so that packing and unpacking use every processor; the
chunks lie one behind another and are cut again where a piece is full.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.gpu.image import zstd

CHUNK = 128 << 20
PIECE = 46 << 20
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder of pieces holds.

    Attributes:
        chunks: the compressed bytes of each chunk, in order.
        pieces: how many pieces there are.
        piece: the bytes of a whole one.
        size: the bytes of the stream.
    """

    chunks: tuple[int, ...]
    pieces: int
    piece: int
    size: int

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read it, and see that every piece has come.

        Raises:
            FileNotFoundError: some have not; the message names them.
        """
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
        manifest = cls(tuple(found["chunks"]), found["pieces"], found["piece"], found["size"])
        if missing := [name_of(n) for n in range(manifest.pieces) if not (folder / name_of(n)).is_file()]:
            raise FileNotFoundError(f"{folder}: expected {manifest.pieces} pieces, found no {', '.join(missing)}")
        return manifest


def name_of(number: int) -> str:
    """Return a piece's file name."""
    return f"piece{number:02d}"


def in_order(pool: ThreadPoolExecutor, work: Callable[[bytes], bytes], chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Map with a pool, in order, and with no more in memory than the pool has use for."""
    waiting: deque[Future[bytes]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(work, chunk))
        if len(waiting) > (os.cpu_count() or 2) + 1:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def read_chunks(stream: BinaryIO, size: int = CHUNK) -> Iterator[bytes]:
    """Cut a stream into chunks; the last one may be short."""
    while chunk := stream.read(size):
        while len(chunk) < size and (more := stream.read(size - len(chunk))):
            chunk += more
        yield chunk


def pack(stream: BinaryIO, place: Callable[[int], Path], *, level: int, chunk: int = CHUNK, piece: int = PIECE) -> int:
    """Compress a stream and write its pieces; the manifest lies beside the first.

    Args:
        place: the folder of the piece of that number; it exists.
        level: of Zstandard, 1 to 22.

    Returns:
        how many pieces there are.
    """
    sizes: list[int] = []
    kept = bytearray()
    pieces = total = 0

    def squeeze(raw: bytes) -> bytes:
        return zstd.compress(raw, level)

    def counted() -> Iterator[bytes]:
        nonlocal total
        for raw in read_chunks(stream, chunk):
            total += len(raw)
            yield raw

    def write(most: int) -> None:
        nonlocal pieces
        while len(kept) > most:
            (place(pieces) / name_of(pieces)).write_bytes(kept[:piece])
            del kept[:piece]
            pieces += 1

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for squeezed in in_order(pool, squeeze, counted()):
            sizes.append(len(squeezed))
            kept += squeezed
            write(piece)
    write(0)
    document = {"chunks": sizes, "pieces": pieces, "piece": piece, "size": total}
    (place(0) / MANIFEST).write_text(json.dumps(document), "utf-8")
    return pieces


def squeezed_chunks(folder: Path, manifest: Manifest) -> Iterator[bytes]:
    """Read the chunks back out of the pieces."""
    kept = bytearray()
    number = 0
    for size in manifest.chunks:
        while len(kept) < size:
            kept += (folder / name_of(number)).read_bytes()
            number += 1
        yield bytes(kept[:size])
        del kept[:size]


def join(folder: Path) -> Iterator[bytes]:
    """Give the stream that was packed.

    Raises:
        FileNotFoundError: pieces are missing.
        ZstdError: one was damaged.
        ValueError: the stream is shorter or longer than what was packed.
    """
    manifest = Manifest.read(folder)
    total = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for raw in in_order(pool, lambda frame: zstd.decompress(frame, folder), squeezed_chunks(folder, manifest)):
            total += len(raw)
            yield raw
    if total != manifest.size:
        raise ValueError(f"{folder}: expected {manifest.size} bytes, found {total}")


def unpack(folder: Path, root: Path) -> int:
    """Lay out the tar that the pieces hold, with its owners where this user may, and return its bytes."""
    root.mkdir(parents=True, exist_ok=True)
    owners = ["--numeric-owner", "--same-owner", "--preserve-permissions"] if os.geteuid() == 0 else []
    total = 0
    with subprocess.Popen(["tar", "-x", *owners, "-C", str(root)], stdin=subprocess.PIPE) as tar:
        assert tar.stdin is not None
        for raw in join(folder):
            tar.stdin.write(raw)
            total += len(raw)
    if tar.returncode:
        raise OSError(f"tar exited {tar.returncode}")
    return total
