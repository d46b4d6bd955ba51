"""HAProxy as `deploy/compose/` runs it, with the addresses of a test."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from tests.harness.fleet.router import Router, samples

CONFIGURATION = Path(__file__).parents[3] / "deploy/compose/haproxy.cfg"
SERVER = re.compile(r"^( *server (runtime-\d+)) \S+:8000", re.M)
# Whether this router can be run here.
INSTALLED = shutil.which("haproxy") is not None


class HAProxy(Router):
    """HAProxy with the configuration that is shipped; servers beyond those that it has are taken out."""

    name = "HAProxy"

    def __init__(self, servers: Sequence[int], *, changes: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(servers)
        self.changes = list(changes)

    def configure(self) -> None:
        """Write the shipped configuration with this test's addresses in it."""
        text = CONFIGURATION.read_text("utf-8")
        ports = iter(self.servers)
        lines = []
        for line in text.splitlines():
            if found := SERVER.match(line):
                port = next(ports, None)
                if port is not None:
                    lines.append(line.replace(found.group(0), f"{found.group(1)} 127.0.0.1:{port}"))
                continue
            lines.append(line)
        assert next(ports, None) is None, "more servers than the configuration has"
        text = "\n".join(lines) + "\n"
        for old, new in (
            ("bind :8000", f"bind 127.0.0.1:{self.port}"),
            ("bind :8404", f"bind 127.0.0.1:{self.inside}"),
            ("/tmp/haproxy.sock", str(self.folder / "admin.sock")),
            *self.changes,
        ):
            assert old in text, old
            text = text.replace(old, new)
        (self.folder / "haproxy.cfg").write_text(text)

    def command(self) -> list[str]:
        """Return the command of compose.yaml."""
        return ["haproxy", "-W", "-db", "-f", str(self.folder / "haproxy.cfg")]

    def reload(self) -> None:
        """Write the configuration, and tell the master."""
        self.configure()
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR2)

    def up(self) -> set[int]:
        """Return the ports of the servers that are up."""
        text = self.get("/metrics", inside=True)[1]
        found = set()
        for labels, value in samples(text, "haproxy_server_status").items():
            number = re.search(r'server="runtime-(\d+)"', labels)
            if number and 'state="UP"' in labels and value:
                found.add(self.servers[int(number.group(1))])
        return found
