"""A session store in this process that does what the real one does, at once and in order; and a real one to start.

Its clock is a number that tests move, and it can be made not to answer: before it has done something, or after.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runtime.turns.stores.interface import MOST_LEFT, Found, Leave, Outcome, StoreError, Taken, Write
from tests.harness.server import free_port

VALKEY = shutil.which("valkey-server")
MISSING = "needs Debian's valkey-server"


@dataclass
class Place:
    """What lies at one place."""

    epoch: int = 0
    value: bytes | None = None
    written: int = 0
    left: dict[str, bytes] = field(default_factory=dict)


@dataclass
class StandIn:
    """The store's contract in Python.

    Attributes:
        places: what lies in it.
        now: its clock, in milliseconds.
        down: whether it does not answer, and does nothing.
        deaf: whether it does what it is asked, and does not answer.
        steps: steps of the loop that an answer takes.
        asked: how often it was asked something.
        scans: how often it was gone through as a whole.
    """

    places: dict[str, Place] = field(default_factory=dict)
    now: int = 1_000
    down: bool = False
    deaf: bool = False
    steps: int = 1
    asked: int = 0
    scans: int = 0

    async def take(self, place: str) -> Taken:
        """Take a session."""
        await self._begin()
        there = self.places.setdefault(place, Place())
        there.epoch = max(there.epoch + 1, self.now)
        taken = Taken(there.epoch, self._found(there))
        await self._end()
        return taken

    async def look(self, place: str) -> Found:
        """What lies at a place."""
        await self._begin()
        there = self.places.get(place)
        found = self._found(there) if there is not None else Found(taken=False)
        await self._end()
        return found

    async def apply(self, changes: Sequence[Write | Leave]) -> list[Outcome]:
        """Make changes."""
        await self._begin()
        outcomes = [self._apply(change) for change in changes]
        await self._end()
        return outcomes

    async def remove_all(self, *prefixes: str) -> int:
        """Remove what begins so."""
        self.scans += 1
        await self._begin()
        gone = [place for place in self.places if place.startswith(prefixes)]
        for place in gone:
            del self.places[place]
        await self._end()
        return len(gone)

    async def ping(self) -> None:
        """Answer."""
        await self._begin()
        await self._end()

    async def close(self) -> None:
        """Do nothing."""

    def _apply(self, change: Write | Leave) -> Outcome:
        there = self.places.setdefault(change.place, Place())
        if isinstance(change, Leave):
            known = sum((there.epoch > 0, there.value is not None, there.written > 0, len(there.left)))
            if known >= MOST_LEFT + 3:
                return Outcome(False)
            there.left.setdefault(change.id, change.value)
            return Outcome(True)
        if there.epoch > change.epoch:
            return Outcome(False)
        there.epoch = change.epoch
        if change.value is None:
            there.value, there.written, there.left = None, 0, {}
        else:
            there.value, there.written = change.value, change.epoch
        for name in change.merged:
            there.left.pop(name, None)
        return Outcome(True, tuple(sorted(there.left.items())))

    def _found(self, there: Place) -> Found:
        return Found(there.value, there.written, tuple(sorted(there.left.items())), taken=there.epoch > 0)

    async def _begin(self) -> None:
        self.asked += 1
        for _ in range(self.steps):
            await asyncio.sleep(0)
        if self.down:
            raise StoreError("it is down")

    async def _end(self) -> None:
        for _ in range(self.steps):
            await asyncio.sleep(0)
        if self.deaf or self.down:
            raise StoreError("no answer came")


@dataclass
class Valkey:
    """A real server on loopback, which can be killed and started again with nothing in it."""

    port: int
    folder: Path
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What SESSION_STORE is set to."""
        return f"valkey://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        assert VALKEY is not None, MISSING
        plain = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        command = [VALKEY, *plain, "--dir", str(self.folder), *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        listens = int(command[command.index("--tls-port") + 1]) if "--tls-port" in command else self.port
        deadline = time.monotonic() + 30
        while True:
            try:
                with socket.create_connection(("127.0.0.1", listens), 1):
                    return
            except OSError:
                assert self.process.poll() is None, "it did not start"
                assert time.monotonic() < deadline, "it does not listen"
                time.sleep(0.02)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def valkey(*arguments: str, port: int | None = None) -> Iterator[Valkey]:
    """Run a real store."""
    with tempfile.TemporaryDirectory(prefix="yap-valkey-") as folder:
        server = Valkey(free_port() if port is None else port, Path(folder), arguments)
        server.start()
        try:
            yield server
        finally:
            server.kill()
