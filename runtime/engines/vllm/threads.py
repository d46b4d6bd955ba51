"""The threads of a worker on a CPU that was forked: as many as it has cores, one on each.

vLLM tells OpenMP so by variables, which OpenMP reads when it is loaded. In a worker that was forked it has been loaded
long before, by the server, so the same is done by hand here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# The variables by which vLLM tells OpenMP the cores of a worker, as its versions of OpenMP read them.
PLACES = ("GOMP_CPU_AFFINITY", "OMP_PLACES")
TASKS = Path("/proc/self/task")


def cores_of(environment: Mapping[str, str]) -> list[int]:
    """The cores that vLLM has given to a worker, the first one's first; empty where it has bound it to none.

    >>> cores_of({"OMP_PLACES": "{2,3}"}), cores_of({"GOMP_CPU_AFFINITY": "0 1"}), cores_of({})
    ([2, 3], [0, 1], [])
    """
    told = next((environment[name] for name in PLACES if environment.get(name)), "")
    return [int(number) for number in re.findall(r"\d+", told)]


def bind(cores: Sequence[int], start: Callable[[int], None]) -> list[tuple[int, int]]:
    """Start the threads that compute, and put each on a core; this one, which computes too, on the first.

    Args:
        cores: one for each thread.
        start: starts so many, this one among them.

    Returns:
        Each thread that was bound, by its number in the system, and its core.
    """
    if not cores:
        return []
    before = _tasks()
    start(len(cores))
    started = sorted(_tasks() - before)
    bound: list[tuple[int, int]] = []
    for task, core in zip((0, *started), cores, strict=False):
        with suppress(OSError):  # a core that was taken away meanwhile: the thread runs where it may
            os.sched_setaffinity(task, {core})
            bound.append((task, core))
    return bound


def _tasks() -> set[int]:
    return {int(entry.name) for entry in TASKS.iterdir()}
