"""Blanks, inside an image's files, the kernels that one kind of GPU never loads, so that they cost nothing to carry.

A library holds its kernels as fat binaries: one header, then an entry for each architecture, machine code (`cubin`) or
PTX. The driver takes the entry that its GPU can run and looks at no other's content. So the content of the others is
written over with zeros where it lies; sizes, offsets and everything else in the file stay as they are.
"""

from __future__ import annotations

import io
import struct
import tarfile
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = struct.pack("<I", 0xBA55ED50)
# Magic, version, this header's size; then the bytes of all entries.
HEADER = struct.Struct("<IHHQ")
# Kind, version, this header's size, the content's size, then what is not needed here, and the architecture.
ENTRY = struct.Struct("<HHIQ12xI")
PTX, CUBIN = 1, 2
LIBRARY = (".so", ".cubin", ".fatbin")


@dataclass(frozen=True, slots=True)
class Entry:
    """One architecture's code: its kind, its architecture (90 is sm_90), and where it lies."""

    kind: int
    sm: int
    start: int
    end: int


def entries(content: bytes | bytearray, at: int) -> list[Entry]:
    """Return the entries of the fat binary whose header lies there; none where that is no whole one."""
    if at + HEADER.size > len(content):
        return []
    _, version, header, size = HEADER.unpack_from(content, at)
    begin, end = at + header, at + header + size
    if version != 1 or header != HEADER.size or end > len(content):
        return []
    found = []
    while begin < end:
        if begin + ENTRY.size > end:
            return []
        kind, _, head, length, sm = ENTRY.unpack_from(content, begin)
        if kind not in (PTX, CUBIN) or head < ENTRY.size or begin + head + length > end:
            return []
        found.append(Entry(kind, sm, begin + head, begin + head + length))
        begin += head + length
    return found


def idle(found: list[Entry], sm: int) -> list[Entry]:
    """Return the entries that a GPU of this architecture never loads.

    Machine code runs on its own major architecture, from its own minor one on. PTX is compiled where none of it does.
    """
    fitting = [e.sm for e in found if e.kind == CUBIN and e.sm // 10 == sm // 10 and e.sm <= sm]
    if fitting:
        return [e for e in found if e.kind == PTX or e.sm != max(fitting)]
    return [e for e in found if e.kind == CUBIN or e.sm > sm]


def blank(content: bytearray, sm: int) -> int:
    """Write zeros over what a GPU of this architecture never loads, and return how many."""
    zeros = 0
    at = content.find(MAGIC)
    while at >= 0:
        found = entries(content, at)
        for entry in idle(found, sm):
            content[entry.start : entry.end] = bytes(entry.end - entry.start)
            zeros += entry.end - entry.start
        at = content.find(MAGIC, found[-1].end if found else at + 1)
    return zeros


def blanked(source: BinaryIO, target: BinaryIO, sm: int) -> dict[str, int]:
    """Copy a tar and blank in its libraries what one architecture never loads.

    Returns:
        the zeros written, by file.
    """
    told: dict[str, int] = {}
    with tarfile.open(fileobj=source, mode="r|") as old, tarfile.open(fileobj=target, mode="w|") as new:
        for member in old:
            file = old.extractfile(member) if member.isreg() else None
            if file is None or not any(part in member.name for part in LIBRARY):
                new.addfile(member, file)
                continue
            content = bytearray(file.read())
            if zeros := blank(content, sm):
                told[member.name] = zeros
            new.addfile(member, io.BytesIO(content))
    return told
