"""The threads of a process that is forked, and of the worker that it becomes: as many as that has cores, one on each.

A child has none of its parent's threads but the one that forked. What another held at that moment, such as a lock of
OpenMP or of a tokenizer's pool, it holds in the child for ever. So nothing may compute then. Python's own locks and
those of the C library are put in order by them.

vLLM tells OpenMP so by variables, which OpenMP reads when it is loaded. In a worker that was forked it has been loaded
long before, by the server, so the same is done by hand here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

# The variables by which vLLM tells OpenMP the cores of a worker, as its versions of OpenMP read them.
PLACES = ("GOMP_CPU_AFFINITY", "OMP_PLACES")
TASKS = Path("/proc/self/task")

# How long is waited for a moment in which no other thread computes. OpenMP's idle ones look for work for some time.
QUIET_S = 0.5
LOOK_S = 0.005


async def in_a_new_one(work: Callable[[], T]) -> T:
    """Work in a thread that has done nothing before.

    In a thread, because loading takes up to minutes, and the server answers /healthz meanwhile. In a new one, because
    the engine is forked from it: a thread that has computed with OpenMP leaves its child to wait for threads that the
    child does not have.
    """
    thread = ThreadPoolExecutor(1, "engine-start")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, work)
    finally:
        thread.shutdown(wait=False)


def cores_of(environment: Mapping[str, str]) -> list[int]:
    """The cores that vLLM has given to a worker, the first one's first; empty where it has bound it to none.

    >>> cores_of({"OMP_PLACES": "{2,3}"}), cores_of({"GOMP_CPU_AFFINITY": "0 1"}), cores_of({})
    ([2, 3], [0, 1], [])
    """
    told = next((environment[name] for name in PLACES if environment.get(name)), "")
    return [int(number) for number in re.findall(r"\d+", told)]


def quiet(within: float = QUIET_S, tasks: Path = TASKS) -> bool:
    """Whether there comes a moment, soon, in which every thread of this process but this one sleeps."""
    until = time.monotonic() + within
    while _runs(tasks):
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_S)
    return True


def _runs(tasks: Path) -> bool:
    """Whether another thread runs, or would if it had a core; also where the system does not tell."""
    own = str(threading.get_native_id())
    try:
        others = [entry for entry in tasks.iterdir() if entry.name != own]
    except OSError:
        return True
    for entry in others:
        with suppress(OSError, IndexError):  # one that has ended meanwhile
            if (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] == "R":
                return True
    return False


def bind(cores: Sequence[int], say: Callable[[int], None], start: Callable[[int], None]) -> list[tuple[int, int]]:
    """Start the threads that compute, and put each on a core; this one, which computes too, on the first.

    Args:
        cores: one for each thread.
        say: tells the library how many there will be, for which it may start others, that compute nothing here.
        start: starts so many, this one among them, by having them compute.

    Returns:
        Each thread that was bound, by its number in the system, and its core.
    """
    if not cores:
        return []
    say(len(cores))
    before = _tasks()
    start(len(cores))
    started = sorted(_tasks() - before)
    if len(started) != len(cores) - 1:
        log.warning("expected %d threads to compute beside this one, found %d", len(cores) - 1, len(started))
    bound: list[tuple[int, int]] = []
    for task, core in zip((0, *started), cores, strict=False):
        with suppress(OSError):  # a core that was taken away meanwhile: the thread runs where it may
            os.sched_setaffinity(task, {core})
            bound.append((task, core))
    return bound


def _tasks() -> set[int]:
    return {int(entry.name) for entry in TASKS.iterdir()}
