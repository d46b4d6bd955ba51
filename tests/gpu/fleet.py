#!/usr/bin/env python3
"""Measures a server a GPU behind the router of `deploy/compose/`, beside the same servers without it.

    python3 tests/gpu/fleet.py ARTIFACT [--streams 64 256] [--only router kill] [--routers 2 2-busy 4-busy]

Needs as many GPUs as it shall have servers, `haproxy` on the path, and cores: a quarter of them for the load, one for
each of the router's threads, the rest shared by the servers. A router is told by its threads, `busy` where they are
kept awake (`busy-polling`); several are measured one after the other, before the same servers.

`router`: so many streams for each server, straight to the servers, through the router, and half of them this way and
half that way, in turns; every stream names its session at the handshake, so that the router hashes it. `kill`: clients
(`yap_client`) converse through the router, one server is killed with -9, and what the others' listeners and its own
notice is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import websockets

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[2] / "client")]

from tests.benchmarks.load import Target, run_load, split_cpus
from tests.benchmarks.work import Figures, Sample, figures
from tests.client.statistics import percentile
from tests.harness.fleet.haproxy import HAProxy
from tests.harness.fleet.processes import cpu_seconds
from tests.harness.fleet.router import samples as samples_of
from tests.harness.server import STEADY, Server

WORDS, REPLY = 200, 150
VARIABLES = {
    **STEADY,
    "MAX_CONCURRENT_CONNECTIONS": "2200",
    "WS_MAX_MESSAGES_PER_WINDOW": "0",
    "CHAT_MAX_OUT": str(REPLY),
    "DEPLOY_MODE": "chat",
    "MAX_SESSIONS": "20000",
}


SHIPPED = "nbthread 2", "# busy-polling"  # as the configuration has them


def threads_in(name: str) -> int:
    """Return a router's threads by its name, such as `2` or `4-busy`.

    Raises:
        ValueError: it is no such name.
    """
    if found := re.fullmatch(r"(\d+)(-busy)?", name):
        return int(found[1])
    raise ValueError(f"--routers: expected names such as 2 or 4-busy, found {name}")


class Plain(HAProxy):
    """HAProxy without its master process, which only reloads need."""

    @classmethod
    def called(cls, name: str, servers: list[Server]) -> Plain:
        """Return a router by its name, such as `2` or `4-busy`."""
        ways = [(SHIPPED[0], f"nbthread {threads_in(name)}")]
        ways += [(SHIPPED[1], "busy-polling")] if name.endswith("busy") else []
        return cls([server.port for server in servers], changes=ways)

    def command(self) -> list[str]:
        """Return the command of compose.yaml, less `-W`."""
        return [word for word in super().command() if word != "-W"]


@dataclass(frozen=True)
class Cores:
    """Which CPUs the load, the router and each server have."""

    load: tuple[int, ...]
    router: set[int]
    servers: list[set[int]]

    @classmethod
    def shared_by(cls, number: int, threads: int) -> Cores:
        """Share this process's CPUs between so many servers and a router's threads."""
        serving, load = split_cpus(os.sched_getaffinity(0))
        rest = sorted(serving)
        router, rest = (rest[-threads:], rest[:-threads]) if len(rest) > 2 * threads else (rest, rest)
        each = max(1, len(rest) // number)
        shares = [set(rest[each * index : each * (index + 1)]) or set(rest) for index in range(number)]
        return cls(tuple(sorted(load)), set(router), shares)


@contextmanager
def pinned(cpus: set[int]) -> Iterator[None]:
    """Let what is started inside have these CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def number_of_gpus() -> int:
    """Return how many GPUs this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return len(visible.split(","))
    return len(subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=True).stdout.splitlines())


@dataclass(frozen=True)
class Way:
    """Straight to the servers, through the router, or half of each server's streams this way and half that way.

    Each has personas of its own, so that none finds the other's in a prefix cache.

    Attributes:
        name: for the output.
        urls: what the streams take one after the other; stream i is the server's with the number i modulo all of them.
        keys: the streams' session keys, whose servers by the router are in the same order: how a router spreads a
            hundred sockets is not its price.
        key: of the API.
        cpus: what the load has.
        number: which of the ways it is.
    """

    name: str
    urls: tuple[str, ...]
    keys: tuple[str, ...]
    key: str
    cpus: tuple[int, ...]
    number: int

    def load(self, rounds: int, number: int, spread: float) -> list[Sample]:
        """Let the streams have `rounds` turns; no two numbers ask the same questions."""
        persona = self.number * 10_000_000 + len(self.keys) * 10_000
        seed = persona + 1_000_000 * (number + 1)
        target = Target("yap", "", self.key, words=WORDS, max_tokens=REPLY, keyed=True, keys=self.keys, urls=self.urls)
        return run_load(target, len(self.keys), rounds, len(self.cpus) or 4, seed, persona, spread, self.cpus)


def active(server: Server) -> float:
    """Return how many sockets a server has."""
    with urllib.request.urlopen(f"{server.http}/metrics", timeout=10) as answer:
        return sum(samples_of(answer.read().decode(), "yap_connections_active").values())


async def balanced(servers: list[Server], router: HAProxy, each: int) -> tuple[str, ...]:
    """Find as many session keys for each server as the router gives to it: how evenly it spreads is not its price."""
    found: list[list[str]] = [[] for _ in servers]
    headers = {"X-API-Key": servers[0].api_key}

    async def sockets(wanted: int) -> list[float]:
        while sum(counts := [await asyncio.to_thread(active, server) for server in servers]) != wanted:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.002)
        return counts

    number = 0
    while any(len(keys) < each for keys in found):
        number += 1
        named = {**headers, "X-Session-Id": f"load-{number}"}
        await sockets(0)
        async with websockets.connect(router.url, additional_headers=named, compression=None):
            keys = found[(await sockets(1)).index(1)]
        if len(keys) < each:
            keys.append(f"load-{number}")
    # One after another, so that each process of listeners has as many of every server.
    return tuple(key for row in zip(*found, strict=True) for key in row)


def pings(servers: list[Server], router: HAProxy) -> None:
    """Print a ping's round trip straight and through the router: what the way itself costs."""

    async def times(url: str) -> list[float]:
        found = []
        headers = {"X-API-Key": servers[0].api_key, "X-Session-Id": "pings"}
        async with websockets.connect(url, additional_headers=headers, compression=None) as socket:
            for _ in range(200):
                await asyncio.sleep(0.005)
                began = time.perf_counter()
                await socket.send('{"type":"ping"}')
                await socket.recv(decode=False)
                found.append(time.perf_counter() - began)
        return sorted(found)

    for name, url in (("straight", servers[0].url), ("routed", router.url)) * 2:
        taken = asyncio.run(times(url))
        p50, p95 = percentile(taken, 50) * 1e3, percentile(taken, 95) * 1e3
        print(f"a ping {name}: p50 {p50:.2f}, p95 {p95:.2f} ms", flush=True)


def compare(
    servers: list[Server], router: HAProxy, keys: tuple[str, ...], cores: Cores, passes: int, first: int
) -> dict[str, list[Figures]]:
    """Measure both ways in turns, which tells tokens; and both at once, which tells what the router adds to a TTFT.

    A step of the engine takes longer than the router, and how many wait for one differs from pass to pass. Listeners of
    both ways who speak at once to the same servers wait for the same steps. Ways are counted from `first`: none asks
    what another one asked before.
    """
    streams = len(keys) // len(servers)
    straight, routed = tuple(server.url for server in servers), (router.url,) * len(servers)
    urls = {"straight": straight, "routed": routed, "both at once": straight + routed}
    ways = [
        Way(name, taken, keys, servers[0].api_key, cores.load, number)
        for number, (name, taken) in enumerate(urls.items(), first)
    ]
    found: dict[str, list[Figures]] = {}
    rounds, spread = (6, 1.3) if streams < 128 else (4, 2.5)
    for way in ways:
        way.load(1, 0, 0.5)
    pids = [server.process.pid for server in servers if server.process is not None]
    for number in range(1, passes + 1):
        for way in ways:
            before = sum(cpu_seconds(pid) for pid in pids), router.cpu_seconds()
            samples = way.load(rounds, number, spread)
            tokens = sum(sample.tokens for sample in samples)
            cost = (sum(cpu_seconds(pid) for pid in pids) - before[0]) / tokens * 1e6
            share = (router.cpu_seconds() - before[1]) / tokens * 1e6
            for name, taken in parts(way, samples, len(servers)):
                one = figures(len({sample.stream for sample in taken}), taken, steady=True)
                found.setdefault(name, []).append(one)
                line = one.line(f"{name}, pass {number}")
                inside = percentile(sorted(sample.server_ttft for sample in taken), 50) * 1000
                print(
                    f"{line}  in the server {inside:.1f} ms  CPU a token: servers {cost:.1f}, router {share:.1f} µs",
                    flush=True,
                )
    rate = {name: median(one.tokens_per_s for one in ones) for name, ones in found.items()}
    ttft = {name: median(one.ttft_p50 for one in ones) * 1000 for name, ones in found.items()}
    print(
        f"{len(servers)} servers, {streams} streams each: the router leaves {rate['routed'] / rate['straight']:.3f} × "
        f"the tokens, TTFT p50 {ttft['routed'] - ttft['straight']:+.2f} ms in turns, "
        f"{ttft['routed of both'] - ttft['straight of both']:+.2f} ms at once",
        flush=True,
    )
    return found


def threads_of(router: HAProxy) -> None:
    """Print what the router's threads did: sockets that each took, what the machine took from them, their loops."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(router.folder / "admin.sock"))
        admin.sendall(b"show activity\n")
        told = b"".join(iter(lambda: admin.recv(1 << 16), b"")).decode()
    for line in told.splitlines():
        if line.startswith(("accq_pushed", "cpust_ms_tot", "avg_loop_us", "loops", "ctxsw")):
            print(f"router: {line}", flush=True)


def parts(way: Way, samples: list[Sample], servers: int) -> list[tuple[str, list[Sample]]]:
    """Return a way's samples, or each half of both at once."""
    if len(way.urls) == servers:
        return [(way.name, samples)]
    halves: tuple[list[Sample], list[Sample]] = ([], [])
    for sample in samples:
        halves[sample.stream // servers % 2].append(sample)
    return [("straight of both", halves[0]), ("routed of both", halves[1])]


@dataclass
class Listener:
    """A client that converses, and when it heard each token."""

    number: int
    heard: list[float] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    interrupted: list[float] = field(default_factory=list)

    async def talk(self, url: str, key: str, until: asyncio.Event) -> None:
        """Have one turn after another."""
        from yap_client import Interrupted, Token, connect

        persona = f"{self.number} " + "You are a patient companion. " * 40
        async with connect(url, key, session=f"listener-{self.number}", persona=persona) as talk:
            turn = 0
            while not until.is_set():
                turn += 1
                self.asked.append(time.perf_counter())
                async for event in talk.say(f"Tell me long story {turn} about the sea."):
                    if isinstance(event, Token):
                        self.heard.append(time.perf_counter())
                    elif isinstance(event, Interrupted):
                        self.interrupted.append(time.perf_counter())


def gaps(listener: Listener, begin: float, end: float) -> list[float]:
    """Return the times between tokens that came within a span, where no question was asked between them."""
    inside = [at for at in listener.heard if begin <= at < end]
    asked = listener.asked
    return [later - sooner for sooner, later in pairwise(inside) if not any(sooner < at <= later for at in asked)]


def kill(servers: list[Server], router: HAProxy, listeners: int, cores: Cores) -> dict[str, float]:
    """Kill the first server with -9 while everybody listens."""

    async def main() -> tuple[list[Listener], float]:
        everybody = [Listener(number) for number in range(listeners * len(servers))]
        until = asyncio.Event()
        tasks = [asyncio.create_task(one.talk(router.url, servers[0].api_key, until)) for one in everybody]
        await asyncio.sleep(8)
        assert servers[0].process is not None
        killed = time.perf_counter()
        os.kill(servers[0].process.pid, signal.SIGKILL)
        await asyncio.sleep(8)
        until.set()
        done, late = await asyncio.wait(tasks, timeout=30)
        for task in late:
            task.cancel()
        for task in done:
            if error := task.exception():
                print(f"a listener failed: {type(error).__name__}: {error}", flush=True)
        return everybody, killed

    with pinned(set(cores.load) or os.sched_getaffinity(0)):
        everybody, killed = asyncio.run(main())
    cut = [one for one in everybody if any(at >= killed for at in one.interrupted)]
    others = [one for one in everybody if one not in cut]
    back = [next((at for at in one.heard if at > one.interrupted[0]), None) for one in cut]
    waits = sorted(at - killed for at in back if at is not None)
    before = sorted(gap for one in others for gap in gaps(one, killed - 4, killed))
    after = sorted(gap for one in others for gap in gaps(one, killed, killed + 4))
    result = {
        "cut": float(len(cut)),
        "back": float(len(waits)),
        "back_p50_s": percentile(waits, 50) if waits else -1.0,
        "back_max_s": waits[-1] if waits else -1.0,
        "others_gap_p99_before_ms": percentile(before, 99) * 1000,
        "others_gap_p99_after_ms": percentile(after, 99) * 1000,
        "others_gap_max_after_ms": after[-1] * 1000,
    }
    print(
        f"a server of {len(servers)} is killed: {len(cut)} of {len(everybody)} listeners were cut, {len(waits)} heard "
        f"their next reply after p50 {result['back_p50_s']:.2f}, at most {result['back_max_s']:.2f} s; between the "
        f"others' tokens p99 {result['others_gap_p99_before_ms']:.1f} ms before, "
        f"{result['others_gap_p99_after_ms']:.1f} ms after (at most {result['others_gap_max_after_ms']:.1f})",
        flush=True,
    )
    return result


def main() -> None:
    """Start the servers and the router, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256], help="for each server")
    parser.add_argument("--servers", type=int, help="default: one for each GPU")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--listeners", type=int, default=32, help="for each server, where one is killed")
    parser.add_argument("--only", nargs="+", choices=["router", "kill"], default=["router", "kill"])
    parser.add_argument("--routers", nargs="+", default=["2"], metavar="THREADS[-busy]")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    number = arguments.servers or number_of_gpus()
    cores = Cores.shared_by(number, max(map(threads_in, arguments.routers)))
    print(f"CPUs: load {list(cores.load)}, router {sorted(cores.router)}, servers {[sorted(s) for s in cores.servers]}")
    results: dict[str, object] = {}
    with ExitStack() as stack:
        servers = []
        for index in range(number):
            with pinned(cores.servers[index]):
                server = Server(arguments.artifact, **VARIABLES, CUDA_VISIBLE_DEVICES=str(index))
                servers.append(stack.enter_context(server))
        ready = [server.wait_ready(400) for server in servers]
        print(f"{number} servers: ready after {', '.join(f'{took:.0f}' for took in ready)} s", flush=True)
        keys: dict[int, tuple[str, ...]] = {}  # by streams: routers spread them alike
        for index, name in enumerate(arguments.routers):
            with ExitStack() as routed:
                with pinned(set(sorted(cores.router)[: threads_in(name)])):
                    router = routed.enter_context(Plain.called(name, servers))
                router.wait_up()
                print(f"router of {name} threads", flush=True)
                pings(servers, router)
                for streams in arguments.streams if "router" in arguments.only else ():
                    if streams not in keys:
                        keys[streams] = asyncio.run(balanced(servers, router, streams))
                    found = compare(servers, router, keys[streams], cores, arguments.passes, 1 + 3 * index)
                    results[f"router {index + 1}, {name}, {streams}"] = {
                        way: [asdict(one) for one in ones] for way, ones in found.items()
                    }
                    if arguments.json:
                        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
                threads_of(router)
                if "kill" in arguments.only and index == len(arguments.routers) - 1:
                    results["kill"] = kill(servers, router, arguments.listeners, cores)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
