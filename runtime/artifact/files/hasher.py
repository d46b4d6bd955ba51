"""The SHA-256 of open files, in this process or, run as a program, in one of its own.

A thread that hashes wants Python's lock back after each block, and waits for it beside one that imports; the import
waits for it too. A process has a lock of its own. This one imports Python's own modules alone, so that it begins in
hundredths of a second. It is given files that are open, by their descriptors, and reads no other:

    python -I -S hasher.py PARENT THREADS DESCRIPTOR:SIZE …

It writes a line a file as soon as that is read, `DESCRIPTOR SHA256`, or `DESCRIPTOR ! ERRNO` where it cannot be read.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

BLOCK_BYTES = 1 << 20

FAILED = "!"


def _go_on() -> None:
    """Nothing."""


def sha256_of(descriptor: int, size: int, each: Callable[[], None] = _go_on) -> str:
    """SHA-256 of an open file, of which no more is read than one byte beside what it should have.

    Args:
        size: bytes that it should have.
        each: called before each block.
    """
    hasher, block, at = hashlib.sha256(), memoryview(bytearray(min(BLOCK_BYTES, size + 1))), 0
    while at <= size:
        each()
        read = os.preadv(descriptor, [block[: size + 1 - at]], at)
        if not read:
            break
        hasher.update(block[:read])
        at += read
    return hasher.hexdigest()


def line_of(descriptor: int, size: int, each: Callable[[], None] = _go_on) -> str:
    """What is written of a file."""
    try:
        return f"{descriptor} {sha256_of(descriptor, size, each)}\n"
    except OSError as error:
        return f"{descriptor} {FAILED} {error.errno}\n"


def main(arguments: Sequence[str]) -> None:
    """Hash the files that were handed over, the largest first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent's affair: this process ends with it
    parent, threads = (int(argument) for argument in arguments[:2])
    files = [(int(descriptor), int(size)) for descriptor, size in (file.split(":") for file in arguments[2:])]
    waiting = sorted(files, key=lambda file: file[1])

    def stay() -> None:
        if os.getppid() != parent:
            os._exit(0)

    def work() -> None:
        while True:
            try:
                descriptor, size = waiting.pop()
            except IndexError:
                return
            os.write(sys.stdout.fileno(), line_of(descriptor, size, stay).encode())

    others = [threading.Thread(target=work) for _ in range(threads - 1)]
    for other in others:
        other.start()
    work()
    for other in others:
        other.join()


if __name__ == "__main__":
    main(sys.argv[1:])
