"""An engine's process ends with the one that started it, also where that was killed and its port inherited."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

STARTER = """
import multiprocessing, os, socket, sys, time
sys.path.insert(0, {root!r})
from runtime.engines.vllm.lifeline import end_with_parent

def engine(ready):
    assert end_with_parent() is not None
    ready.set()
    time.sleep(600)

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0))
    context = multiprocessing.get_context({method!r})
    ready = context.Event()
    child = context.Process(target=engine, args=(ready,))
    child.start()
    ready.wait()
    print(child.pid, listener.getsockname()[1], flush=True)
    {end}
"""


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def refused(port: int) -> bool:
    """Whether nobody holds a port."""
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("end", ["time.sleep(600)", "os._exit(3)"])
def test_it_ends_with_whoever_started_it(method: str, end: str, tmp_path: Path) -> None:
    program = tmp_path / "starter.py"
    program.write_text(STARTER.format(root=str(Path(__file__).parents[5]), method=method, end=end))
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        child, port = (int(word) for word in starter.stdout.readline().split())
        if "sleep" in end:
            assert lives(child)
            os.kill(starter.pid, signal.SIGKILL)
        starter.wait()
        until = time.monotonic() + 60
        while lives(child) or not refused(port):
            assert time.monotonic() < until, "it outlives its starter"
            time.sleep(0.02)


def test_a_process_that_nobody_made_has_no_such_thread() -> None:
    program = "from runtime.engines.vllm.lifeline import end_with_parent; print(end_with_parent())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
