"""Zstandard by the C library that every Debian and Ubuntu has: Python's own comes with 3.14 only.

`xz` in Python is on every host too, and takes four times as long for the same size.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

LIBRARY = "libzstd.so.1"
# From <zstd.h>.
LEVEL, WINDOW_LOG, LONG_DISTANCE, CHECKSUM = 100, 101, 160, 201
LARGEST_WINDOW = 27
UNKNOWN = 2**64 - 2  # the smallest of the two values that are no size


class ZstdError(Exception):
    """What is no frame of Zstandard, or a damaged one."""


@cache
def library(beside: Path | None = None) -> ctypes.CDLL:
    """Load the system's library, or a copy of it that was carried along."""
    try:
        found = ctypes.CDLL(LIBRARY)
    except OSError:
        if beside is None:
            raise
        found = ctypes.CDLL(str(beside / LIBRARY))
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    for name, result, arguments in (
        ("createCCtx", pointer, ()),
        ("freeCCtx", size, (pointer,)),
        ("CCtx_setParameter", size, (pointer, ctypes.c_int, ctypes.c_int)),
        ("compress2", size, (pointer, pointer, size, ctypes.c_char_p, size)),
        ("compressBound", size, (size,)),
        ("decompress", size, (pointer, size, ctypes.c_char_p, size)),
        ("getFrameContentSize", ctypes.c_ulonglong, (ctypes.c_char_p, size)),
        ("isError", ctypes.c_uint, (size,)),
        ("getErrorName", ctypes.c_char_p, (size,)),
    ):
        function = getattr(found, f"ZSTD_{name}")
        function.restype, function.argtypes = result, arguments
    return found


def checked(zstd: ctypes.CDLL, result: int) -> int:
    """Return a result that is none of the library's errors."""
    if zstd.ZSTD_isError(result):
        raise ZstdError(zstd.ZSTD_getErrorName(result).decode())
    return result


def compress(raw: bytes, level: int) -> bytes:
    """Compress to one frame, with a checksum."""
    zstd = library()
    context = zstd.ZSTD_createCCtx()
    try:
        for name, value in ((LEVEL, level), (WINDOW_LOG, LARGEST_WINDOW), (LONG_DISTANCE, 1), (CHECKSUM, 1)):
            checked(zstd, zstd.ZSTD_CCtx_setParameter(context, name, value))
        room = ctypes.create_string_buffer(zstd.ZSTD_compressBound(len(raw)))
        size = checked(zstd, zstd.ZSTD_compress2(context, room, len(room), raw, len(raw)))
        return ctypes.string_at(room, size)
    finally:
        zstd.ZSTD_freeCCtx(context)


def decompress(frame: bytes, beside: Path | None = None) -> bytes:
    """Decompress one frame.

    Args:
        beside: where a copy of the library lies, for a host without one.

    Raises:
        ZstdError: it is damaged.
    """
    zstd = library(beside)
    size = zstd.ZSTD_getFrameContentSize(frame, len(frame))
    if size >= UNKNOWN:
        raise ZstdError("expected a frame that tells its size, found something else")
    room = ctypes.create_string_buffer(max(size, 1))
    if (found := checked(zstd, zstd.ZSTD_decompress(room, size, frame, len(frame)))) != size:
        raise ZstdError(f"expected {size} bytes, found {found}")
    return ctypes.string_at(room, size)
