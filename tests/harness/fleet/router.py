"""A router before servers on loopback: HAProxy with `deploy/compose/haproxy.cfg`, or Envoy with the same rules."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.harness.fleet.processes import cpu_seconds, family, resident_kib
from tests.harness.server import free_port


class Router:
    """A router that runs.

    The context manager starts it, waits until it sees a server that is ready, and ends it.

    Attributes:
        servers: the ports behind it, in their order; it keeps its own as `SERVERS` allow.
        port: the one that clients use.
        inside: the one that Prometheus uses.
        log: what it wrote.
    """

    name = ""

    def __init__(self, servers: Sequence[int]) -> None:
        self.servers = list(servers)
        self.port, self.inside = free_port(), free_port()
        self.url = f"ws://127.0.0.1:{self.port}/ws"
        self.http = f"http://127.0.0.1:{self.port}"
        self._temporary = tempfile.TemporaryDirectory(prefix="yap-router-")
        self.folder = Path(self._temporary.name)
        self.log = self.folder / "router.log"
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self) -> None:
        """Write the configuration for `servers`."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return the command that starts it."""
        raise NotImplementedError

    def reload(self) -> None:
        """Take on a configuration that was written anew."""
        raise NotImplementedError

    def __enter__(self) -> Router:
        self.configure()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process is not None:
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(10)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait()
        finally:
            self._temporary.cleanup()

    def kill(self) -> None:
        """End it at once with all that it is made of, as a host does that loses its power."""
        assert self.process is not None
        for pid in family(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def status(self, path: str) -> int:
        """Return the HTTP status of a path; 0 while nobody listens."""
        return self.get(path)[0]

    def get(self, path: str, *, inside: bool = False) -> tuple[int, str]:
        """Return status and body of a path; 0 while nobody listens."""
        address = f"http://127.0.0.1:{self.inside}" if inside else self.http
        try:
            with urllib.request.urlopen(address + path, timeout=5) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def up(self) -> set[int]:
        """Return the ports of the servers that it takes for ready."""
        raise NotImplementedError

    def wait_up(self, *ports: int, timeout: float = 60) -> None:
        """Wait until it takes these servers for ready, and no others; all by default."""
        wanted, began = set(ports or self.servers), time.monotonic()
        while self.up() != wanted:
            if self.process is None or self.process.poll() is not None or time.monotonic() - began > timeout:
                raise RuntimeError(f"expected {wanted} to be up, found {self.up()}:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def cpu_seconds(self) -> float:
        """Return the CPU that it has used so far."""
        assert self.process is not None
        return cpu_seconds(self.process.pid)

    def resident_kib(self) -> int:
        """Return its resident memory in KiB."""
        assert self.process is not None
        return resident_kib(self.process.pid)


def samples(text: str, name: str) -> dict[str, float]:
    """Return the samples of a metric by its labels as they are written, of Prometheus' text."""
    pattern = re.compile(rf"^{re.escape(name)}(?:\{{(.*)\}})? (\S+)$", re.M)
    return {labels: float(value) for labels, value in pattern.findall(text)}
