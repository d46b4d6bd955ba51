"""Ends the engine's process with the server's, however that ended.

Nothing tells vLLM's engine that the process which made it was killed: it would stay, with the GPU's memory and with the
server's port, which it inherited. Whoever connects there is then taken by nobody and hears nothing, so that a router
finds out only when its patience ends, and the next server does not start.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
from threading import Thread


def end_with_parent() -> Thread | None:
    """Kill this process as soon as the one that started it is gone. A thread waits for that in the kernel.

    Returns:
        The thread; none where this process was not started by `multiprocessing`, or the system cannot tell.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return None
    try:
        descriptor = os.pidfd_open(parent.pid)
    except ProcessLookupError:
        _end()
    except OSError:  # before Linux 5.3, or where a filter of system calls forbids it
        return None
    thread = Thread(target=_wait, args=(descriptor,), name="lifeline", daemon=True)
    thread.start()
    return thread


def _wait(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while not poll.poll():
        pass
    _end()


def _end() -> None:
    # Nothing is worth being put in order: whoever would read it is gone.
    os.kill(os.getpid(), signal.SIGKILL)
