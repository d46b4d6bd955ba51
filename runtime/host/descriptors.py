"""File descriptors: every socket is one, and a process that has none left is deaf."""

from __future__ import annotations

import resource
from dataclasses import dataclass

# Nobody needs more, and some programs that a process starts walk through all that it may have.
ENOUGH = 65_536
# Log files, the engine's pipes and queues, the GPU's device files, a shell that looks in.
RESERVED = 256
# Fewer sockets without a slot than this, and a handful of slow clients shut everybody out.
FEWEST_UNADMITTED = 32
# The kernel completes this many connections while the event loop is busy. All may be accepted in one step of it, at
# some 50 µs each; whoever finds no place tries again after a second.
BACKLOG = 256


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """The process's limit of open files, and what it was at the start."""

    limit: int
    before: int


@dataclass(frozen=True, slots=True)
class Shares:
    """How many sockets may be without a slot, and how many may wait to be accepted."""

    unadmitted: int
    backlog: int


def limit() -> int:
    """Open files that this process may have now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENOUGH if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> OpenFiles:
    """Raise the soft limit of open files as far as it may go, `ENOUGH` at most; never lower it."""
    before = limit()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if wanted <= before:
        return OpenFiles(before, before)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # some sandboxes forbid even that
        return OpenFiles(before, before)
    return OpenFiles(wanted, before)


def share(limit: int, slots: int, wanted: int) -> Shares:
    """Divide the descriptors: the slots and the reserve have theirs whatever happens, the rest is for who has no slot.

    Args:
        limit: open files that the process may have.
        slots: connection slots.
        wanted: sockets without a slot, where there is room for them.

    Raises:
        ValueError: too few are left for who knocks; says how many are needed.
    """
    free = limit - RESERVED - slots
    if free < 2 * FEWEST_UNADMITTED:
        raise ValueError(f"expected at least {RESERVED + slots + 2 * FEWEST_UNADMITTED} open files, found {limit}")
    unadmitted = min(wanted, free // 2)
    return Shares(unadmitted, min(BACKLOG, free - unadmitted))
