"""Attack a server on loopback for a minute, and tell what another client noticed. Exit 1 when a bound is broken.

python -m tests.attack                                     servers of its own, around a scripted engine
python -m tests.attack --port 8000 --key KEY --other OTHER one that runs already, on this machine
python -m tests.attack --seconds 10 heads silence          some of it, and shorter

The bounds: pings of another client at p99.9, its turns and its session, resident memory, slots and sockets back, health
checks answered, no new figures among the metrics. The other client has another key. A server of our own has two: one as
it comes, and for attacks that rate limits would end one without these, with small limits on sessions. A busy
machine delays everybody. So each ping is held against what the server computed meanwhile, and all of them against pings
to a second server that nobody attacks.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.attack.attack import Clock, Target
from tests.attack.clients import attacks
from tests.attack.observer import Noticed, Observer, listener_of, metric, percentile, resident, series
from tests.client.ending import ending
from tests.harness.server import Server

# With the start of the servers, a minute.
SECONDS = 50.0
# Each attack has so long, however little is left.
LEAST_S = 1.0
STALL_S = 0.050
# On a busy machine a ping may take longer for no fault of the server's: so many times what a calm one takes.
NOISE = 10
MEMORY_MIB = 64.0
# Figures that are told from their first event on: of causes, routes and types that had not happened before.
NEW_SERIES = 100
# The key of who behaves, on a server of our own.
OTHER = "other-key"
# Sessions stay below MEMORY_MIB in bytes, and their number is reached.
UNLIMITED = {
    "WS_MAX_MESSAGES_PER_WINDOW": "0",
    "WS_MAX_CANCELS_PER_WINDOW": "0",
    "CHAT_PROMPT_UPDATE_MAX_PER_WINDOW": "0",
    "MAX_SESSIONS": "1000",
    "MAX_SESSION_BYTES": str(32 * 1024 * 1024),
    "SCRIPT_TEMPLATE": "1",
}
# Time after each attack in which everything must have come back: a close takes 5 s, and a handshake has 10.
BACK_S = 15.0


@dataclass(frozen=True)
class Attacked:
    """A server under attack: for who does not behave, for who does, and its process."""

    target: Target
    other: Target
    pid: int


def scripted(variables: Mapping[str, str]) -> Server:
    """A server of our own, with two keys."""
    settings = {"SCRIPT_REPLY_SECONDS": "1", "TEXT_API_KEY": f"test-key,{OTHER}", **variables}
    return Server(Path(), module="tests.harness.scripted_process", **settings)


def one_client(name: str, target: Target, seconds: float) -> subprocess.Popen[bytes]:
    """A client that does not behave, in a process of its own."""
    command = [sys.executable, "-m", "tests.attack", "--client", name, "--seconds", str(seconds)]
    return subprocess.Popen([*command, "--port", str(target.port), "--key", target.key], stdout=subprocess.PIPE)


def be_client(name: str, target: Target, seconds: float) -> None:
    """In that process: do it, and stop by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if 0 < hard < 65_536 else max(soft, 65_536), hard))
    attack = attacks()[name]
    print("begins", flush=True)
    attack.run(target, Clock(seconds))


async def came_back(target: Target) -> float:
    """Seconds until no slot but ours is held and no socket is left over; infinite when that takes too long."""
    began = time.monotonic()
    while time.monotonic() - began < BACK_S:
        held, open_ones = metric(target, "yap_connections_active"), metric(target, "yap_sockets_unadmitted")
        if held == 1 and open_ones <= 1:  # our own, and the one that asks
            return time.monotonic() - began
        await asyncio.sleep(0.25)
    return float("inf")


def heading() -> None:
    """What stands in the lines below."""
    pings = "".join(f" {name:>7}" for name in ("p50", "p99.9", "work", "calm", "worst"))
    memory = "".join(f" {name:>7}" for name in ("before", "peak", "after"))
    print(f"{'attack':10} {'pings':>6}{pings} ms {'health':>8} {'turns':>6}{memory} MiB   back s", flush=True)


class Schedule:
    """So many attacks in so many seconds: each gets its share of what is left, less what came on top of the last."""

    def __init__(self, attacks: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._left = attacks
        self._clock = clock
        self._ends = clock() + seconds
        self._began = self._share = 0.0  # of the attack that goes on
        self._on_top = 0.0  # its start, and the time in which it had to be gone

    def begin(self) -> float:
        """Seconds for the next one."""
        self._began = self._clock()
        self._share = max(LEAST_S, (self._ends - self._began) / max(1, self._left) - self._on_top)
        self._left -= 1
        return self._share

    def end(self) -> None:
        """Note that it is over."""
        self._on_top = max(0.0, self._clock() - self._began - self._share)


async def attack(
    names: list[str], attacked: Attacked, calm: Target, schedule: Schedule, allowed: float = STALL_S
) -> bool:
    """All of them, one after the other; whether all bounds were kept."""
    kept = True
    target, pid = attacked.target, attacked.pid
    async with Observer(attacked.other, calm, pid).watching() as observer:
        await observer.watch(LEAST_S)  # what is only allocated once
        for name in names:
            before, figures, seconds = resident(pid), series(target), schedule.begin()
            process = one_client(name, target, seconds)
            assert process.stdout is not None
            try:
                await asyncio.to_thread(process.stdout.readline)
                noticed = await observer.watch(seconds)
                await asyncio.to_thread(process.wait, 10)
            finally:
                process.kill()
                status = process.wait()
                process.stdout.close()
            back = await came_back(target)
            schedule.end()
            grown = series(target) - figures
            kept &= report(name, noticed, before, resident(pid), back, failed=status != 0, grown=grown, allowed=allowed)
    return kept


def report(
    name: str,
    noticed: Noticed,
    before: float,
    after: float,
    back: float,
    *,
    failed: bool,
    grown: int = 0,
    allowed: float = STALL_S,
) -> bool:
    """One line, and one for each bound that was broken; whether none was."""
    stall, work, calm = (percentile(values, 0.999) for values in (noticed.pings, noticed.work, noticed.calm))
    milliseconds = [value * 1000 for value in (percentile(noticed.pings, 0.5), stall, work, calm, max(noticed.pings))]
    answered, had = noticed.checks - noticed.deaf, noticed.turns - len(noticed.refused)
    print(
        f"{name:10} {len(noticed.pings):6} " + " ".join(f"{value:7.1f}" for value in milliseconds) + "    "
        f"{answered:4}/{noticed.checks:<3} {had:3}/{noticed.turns:<2} "
        f"{before:7.1f} {noticed.peak:7.1f} {after:7.1f}     {back:6.1f}",
        flush=True,
    )
    broken = {
        f"the server let a ping wait for {work * 1000:.0f} ms at p99.9": work > allowed,
        f"a ping took {stall * 1000:.0f} ms at p99.9": stall > allowed + NOISE * calm,
        f"memory grew by {max(noticed.peak, after) - before:.0f} MiB": max(noticed.peak, after) - before > MEMORY_MIB,
        f"slots or sockets were not back after {BACK_S:g} s": back == float("inf"),
        f"{noticed.deaf} health checks were not answered": noticed.deaf > 0,
        f"{len(noticed.refused)} turns were not had: {', '.join(noticed.refused[:3])}": bool(noticed.refused),
        f"{grown} figures more among the metrics": grown > NEW_SERIES,
        "the client itself failed": failed,
    }
    for what, is_broken in broken.items():
        if is_broken:
            print(f"  {name}: {what}", flush=True)
    return not any(broken.values())


def own(server: Server) -> Attacked:
    """A server of our own, when it is ready."""
    server.wait_ready()
    assert server.process is not None
    return Attacked(Target(server.port, server.api_key), Target(server.port, OTHER), server.process.pid)


def main() -> int:
    """Read the command line and do it."""
    known = attacks()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"{', '.join(sorted(known))} (default: all)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of them together (50)")
    parser.add_argument("--stall", type=float, default=STALL_S, help="longest stall that is allowed, in seconds (0.05)")
    parser.add_argument("--port", type=int, help="of a server that runs already, on loopback")
    parser.add_argument("--key", default="test-key", help="one of its keys")
    parser.add_argument("--other", help="a key of another holder there, for the client that watches")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.attacks) - set(known):
        parser.error(f"expected {', '.join(sorted(known))}, found {', '.join(sorted(unknown))}")
    if arguments.client:
        be_client(arguments.client, Target(arguments.port, arguments.key), arguments.seconds)
        return 0
    names = arguments.attacks or sorted(known)
    if arguments.port and not arguments.other:
        left_out = [name for name in names if known[name].shared]
        names = [name for name in names if name not in left_out]
        for name in left_out:
            print(f"{name} is left out: it needs --other")
    for name in names:
        print(f"{name}: {known[name].does}")
    groups = [names] if arguments.port else [[n for n in names if known[n].unlimited == of] for of in (False, True)]
    kept = True
    with ExitStack() as stack:
        calm = stack.enter_context(scripted({}))
        if arguments.port:
            other = Target(arguments.port, arguments.other or arguments.key)
            found = [Attacked(Target(arguments.port, arguments.key), other, listener_of(arguments.port))]
        else:
            variables = [of for of, group in zip(({}, UNLIMITED), groups, strict=True) if group]
            servers = [stack.enter_context(scripted(of)) for of in variables]  # they start at the same time
            found = [own(server) for server in servers]
        calm.wait_ready()
        heading()
        schedule = Schedule(len(names), arguments.seconds)
        for attacked, group in zip(found, filter(None, groups), strict=True):
            kept &= asyncio.run(attack(group, attacked, Target(calm.port, calm.api_key), schedule, arguments.stall))
    print("all bounds kept" if kept else "a bound was broken")
    return 0 if kept else 1


if __name__ == "__main__":
    with ending():
        raise SystemExit(main())
