"""The processes that a process started."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def descendants(pid: int) -> dict[int, str]:
    """Return the processes that a process started, and those that these started, by their names; no dead ones."""
    parents: dict[int, tuple[int, str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            before, _, after = stat.read_text().rpartition(") ")
            state, parent = after.split()[:2]
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent), before.partition("(")[2]
    found: dict[int, str] = {}
    while new := {p: name for p, (up, name) in parents.items() if p not in found and (up == pid or up in found)}:
        found |= new
    return found
