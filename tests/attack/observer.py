"""What another client notices: how long its pings take, beside those to a server that nobody attacks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.attack.attack import Target

PING = '{"type":"ping"}'
PAUSE_S = 0.002
HEALTH_PAUSE_S = 0.5
# Between two turns, so that no rate limit meets the one who behaves.
TURN_PAUSE_S = 2.0
# What an attack needs to be in full swing.
FIRST_TURN_S = 0.5
# A server that has not answered by then is deaf.
DEAF_S = 10.0


@dataclass
class Noticed:
    """Seconds from each ping to its pong; health checks that had no answer; the largest resident memory in MiB;
    turns, and what was wrong with those that were not had.

    `work` is what the server computed meanwhile, in seconds of CPU: so much of a ping's time is the server's own doing,
    however busy the machine is.
    """

    pings: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    calm: list[float] = field(default_factory=list)
    checks: int = 0
    deaf: int = 0
    peak: float = 0.0
    turns: int = 0
    refused: list[str] = field(default_factory=list)


def percentile(values: list[float], share: float) -> float:
    """The value that so large a share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


class Observer:
    """A client that behaves, on the server under attack and on one that is left alone."""

    def __init__(self, target: Target, calm: Target, pid: int) -> None:
        self._target = target
        self._calm = calm
        self._pid = pid
        self._noticed = Noticed()
        self._known = False
        self._attacked: ClientConnection | None = None
        self._alone: ClientConnection | None = None

    @asynccontextmanager
    async def watching(self) -> Any:
        """Connected to both."""
        async with client(self._target) as self._attacked, client(self._calm) as self._alone:
            yield self

    async def watch(self, seconds: float) -> Noticed:
        """Ping both for so long."""
        assert self._attacked is not None
        assert self._alone is not None
        self._noticed = noticed = Noticed(peak=resident(self._pid))
        end = time.monotonic() + seconds
        checking = asyncio.gather(self._check(end), self._converse(end))
        while time.monotonic() < end:
            before = cpu_seconds(self._pid)
            noticed.pings.append(await round_trip(self._attacked))
            noticed.work.append(min(noticed.pings[-1], cpu_seconds(self._pid) - before))
            noticed.calm.append(await round_trip(self._alone))
            noticed.peak = max(noticed.peak, resident(self._pid))
            await asyncio.sleep(PAUSE_S)
        await checking
        return noticed

    async def _check(self, end: float) -> None:
        while time.monotonic() < end:
            self._noticed.checks += 1
            self._noticed.deaf += not await asyncio.to_thread(healthy, self._target)
            await asyncio.sleep(HEALTH_PAUSE_S)

    async def _converse(self, end: float) -> None:
        """Come in, have a turn in a session that was had before, and leave."""
        await asyncio.sleep(max(0.0, min(FIRST_TURN_S, (end - time.monotonic()) / 2)))
        while time.monotonic() < end:
            self._noticed.turns += 1
            try:
                wrong = await asyncio.wait_for(self._turn(), DEAF_S)
            except (OSError, WebSocketException, asyncio.TimeoutError) as error:
                wrong = type(error).__name__
            if wrong:
                self._noticed.refused.append(wrong)
            await asyncio.sleep(min(TURN_PAUSE_S, max(0.0, end - time.monotonic())))

    async def _turn(self) -> str:
        """What was wrong with a turn; nothing of one that was had whole, with the persona of the first."""
        start = {"type": "start", "session_id": "behaves", "user_utterance": "hello"}
        async with client(self._target) as connection:
            await connection.send(json.dumps(start if self._known else start | {"persona_text": "You are Mia."}))
            while True:
                message = json.loads(await connection.recv())
                if message["type"] == "error":
                    return str(message["error_code"])
                if message["type"] == "ack" and not message["chat_prompt"]:
                    return "the session was lost"
                if message["type"] == "done":
                    self._known = True
                    return "" if "usage" in message else "no usage"


def series(target: Target) -> int:
    """How many figures the server tells."""
    return sum(not line.startswith("#") for line in get(target, "/metrics").splitlines())


def client(target: Target) -> connect:
    """A client with a key."""
    return connect(f"ws://127.0.0.1:{target.port}/ws", additional_headers={"X-API-Key": target.key})


async def round_trip(connection: ClientConnection) -> float:
    """Seconds from a ping to its pong; `DEAF_S` where none comes."""
    began = time.perf_counter()
    try:
        await connection.send(PING)
        await asyncio.wait_for(connection.recv(), DEAF_S)
    except asyncio.TimeoutError:
        return DEAF_S
    return time.perf_counter() - began


def get(target: Target, path: str) -> str:
    """A page of the server."""
    with urllib.request.urlopen(f"http://127.0.0.1:{target.port}{path}", timeout=DEAF_S) as answer:
        return str(answer.read().decode())


def healthy(target: Target) -> bool:
    """Whether the health check is answered in time."""
    try:
        return "live" in get(target, "/healthz")
    except OSError:
        return False


def metric(target: Target, name: str) -> float:
    """One of the server's figures."""
    found = re.search(rf"^{name} (\S+)$", get(target, "/metrics"), re.MULTILINE)
    return float(found.group(1)) if found else float("nan")


def resident(pid: int) -> float:
    """Resident memory in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found.group(1)) / 1024 if found else 0.0


def cpu_seconds(pid: int) -> float:
    """CPU that a process has used, to the nanosecond: its clock, as `clock_getcpuclockid` names it on Linux."""
    return time.clock_gettime((~pid << 3) | 2)


def listener_of(port: int) -> int:
    """The process that listens on a loopback port.

    Raises:
        LookupError: there is none, or it is somebody else's.
    """
    wanted = set(_sockets_on(port))
    for process in Path("/proc").glob("[1-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to look into
            if any(str(entry.readlink()) in wanted for entry in (process / "fd").iterdir()):
                return int(process.name)
    raise LookupError(f"expected a process of this user that listens on port {port}, found none")


def _sockets_on(port: int) -> Iterator[str]:
    listening = "0A"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if Path(table).exists() else ():
            fields = line.split()
            if fields[3] == listening and int(fields[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{fields[9]}]"
