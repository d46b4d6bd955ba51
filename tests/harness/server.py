"""A runtime in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.harness.fleet.processes import cpu_seconds

# For a server whose speed is measured: all that it has is there when it is ready, and nothing comes in between.
STEADY = {"GRAPHS_AFTER_READINESS": "false"}


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_phases_in(metrics: str) -> dict[str, float]:
    """Return the seconds of each phase of a start, out of what `/metrics` tells; no phases that took none."""
    told = re.findall(r'^yap_start_seconds\{phase="(\w+)"\} (\S+)$', metrics, re.MULTILINE)
    return {phase: float(seconds) for phase, seconds in told if float(seconds) > 0}


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


class Server:
    """A runtime on an artifact, as `python -m runtime`, on a free loopback port.

    The context manager ends the process whatever happens inside.

    Attributes:
        module: what is run.
        port: on loopback.
        url: of its WebSocket.
        http: the address of its HTTP paths.
        api_key: the key that it accepts.
        log: the file of standard output and error.
        environment: the variables that it is started with.
        process: none before the start.
        folder: holds the logs; removed at the end.
    """

    def __init__(self, artifact: Path, *, api_key: str = "test-key", module: str = "runtime", **variables: str) -> None:
        self.module = module
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}/ws"
        self.http = f"http://127.0.0.1:{self.port}"
        self.api_key = api_key
        self._folder = tempfile.TemporaryDirectory(prefix="yap-server-")
        self.log = Path(self._folder.name) / "output.log"
        self.environment = {
            **os.environ,
            "ARTIFACT": str(artifact.resolve()),
            "TEXT_API_KEY": api_key,
            "ARTIFACT_TRUST": "unsigned",  # what tests serve they made
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "LOG_DIR": self._folder.name,
            "PYTHONFAULTHANDLER": "1",
            "GEN_TIMEOUT_S": "300",  # a busy machine takes its time for a reply
            **variables,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.began = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module], stdout=log, stderr=subprocess.STDOUT, env=self.environment
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process and self.process.poll() is None:
                self.stop(30)
        finally:
            self._folder.cleanup()

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines that the server printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def status(self, path: str = "/readyz") -> int:
        """Return the HTTP status of a path; 0 while nobody listens."""
        try:
            with urllib.request.urlopen(self.http + path, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def wait_ready(self, timeout: float = 900) -> float:
        """Wait until the engine answers, and return the seconds since the start."""
        while self.status() != 200:
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"the server exited {self.process and self.process.returncode}:\n{self.log_tail()}")
            if time.monotonic() - self.began > timeout:
                raise RuntimeError(f"not ready within {timeout:g} s:\n{self.log_tail()}")
            time.sleep(0.2)
        return time.monotonic() - self.began

    def wait_ready_while_it_works(self, idle: float = 120) -> float:
        """Wait as `wait_ready` does, on a machine that does much else: until its processes did nothing for so long."""
        assert self.process is not None
        used, since = 0.0, time.monotonic()
        while self.status() != 200:
            now = cpu_seconds(self.process.pid)
            if now - used >= 0.1:
                used, since = now, time.monotonic()
            if self.process.poll() is not None:
                return self.wait_ready()  # which says why not
            if time.monotonic() - since > idle:
                raise RuntimeError(f"not ready, and nothing was done for {idle:g} s:\n{self.log_tail()}")
            time.sleep(0.5)
        return time.monotonic() - self.began

    def start_phases(self) -> dict[str, float]:
        """Return the seconds of each phase of the start."""
        with urllib.request.urlopen(self.http + "/metrics", timeout=10) as response:
            return start_phases_in(response.read().decode())

    def stop(self, timeout: float = 60) -> int:
        """Send SIGTERM, as `docker stop` does, and return the exit status.

        Raises:
            RuntimeError: it did not end in time; with what it printed, and where each of its threads stood.
        """
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        raise RuntimeError(f"it did not end within {timeout:g} s of SIGTERM:\n{self.log_tail(120)}")
