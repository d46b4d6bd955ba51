"""What a router before several servers costs, and what it does to sockets: HAProxy, Envoy, Ray Serve, and none.

The servers' engines are tables, so that frames are all that there is to do. A frame is one token: a text message of
about 33 bytes, in a segment of its own where the engine's steps are as far apart as here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import websockets

from tests.benchmarks.gateway import instant
from tests.benchmarks.load import Target, run_load
from tests.client.statistics import percentile
from tests.harness.fleet.envoy import Envoy, binary
from tests.harness.fleet.haproxy import INSTALLED, HAProxy
from tests.harness.fleet.processes import cpu_seconds
from tests.harness.fleet.ray_serve import MISSING, PYTHON, RayServe
from tests.harness.fleet.router import Router
from tests.harness.scripted import KEY
from tests.harness.server import Server

SOCKETS = 1000
# Seconds between a stream's tokens, so that the sockets' frames together are what two cores can do, and flat out.
PACES = (0.2, 0.0)
TOKENS = 75
LISTENERS = 120
SPOKEN = {"SCRIPT_REPLY_SECONDS": "1", "WS_MAX_MESSAGES_PER_WINDOW": "0", "MAX_CONCURRENT_CONNECTIONS": "1000"}


def routers() -> list[type[Router]]:
    """Return the routers that can be run here; says which cannot."""
    found: list[type[Router]] = []
    for kind, there in ((HAProxy, INSTALLED), (Envoy, binary() is not None)):
        if there:
            found.append(kind)
        else:
            print(f"scale: {kind.name} was not run: it is not installed here ({kind.__module__} says how)")
    return found


@contextlib.contextmanager
def servers(number: int, module: str, **variables: str) -> Iterator[list[Server]]:
    """Run several servers in processes of their own, and wait until all are ready."""
    with ExitStack() as stack:
        started = []
        for _ in range(number):
            if module == "tests.benchmarks.instant":
                server = instant(TOKENS, float(variables["INSTANT_PAUSE"]))
            else:
                server = Server(Path(), api_key=KEY, module=module, **variables)
            started.append(stack.enter_context(server))
        for server in started:
            server.wait_ready()
        yield started


@dataclass(frozen=True)
class Route:
    """A way to a server, and what it has used so far.

    Attributes:
        name: of what stands before the server.
        url, key: for clients.
        server, router: seconds of CPU.
        router_kib: resident memory of what stands before.
    """

    name: str
    url: str
    key: str
    server: Callable[[], float]
    router: Callable[[], float] = lambda: 0.0
    router_kib: Callable[[], int] | None = None


def frames_through(pace: float, kinds: Sequence[type[Router]], sockets: int = SOCKETS, rounds: int = 2) -> None:
    """Measure frames a second and CPU a frame, directly and through each router, one after the other."""
    with servers(1, "tests.benchmarks.instant", INSTANT_PAUSE=str(pace)) as (server,):
        assert server.process is not None
        server_cpu = partial(cpu_seconds, server.process.pid)
        measure(Route("direct", server.url, server.api_key, server_cpu), pace, sockets, rounds)
        for kind in kinds:
            with kind([server.port]) as router:
                router.wait_up()
                before = router.cpu_seconds, router.resident_kib
                measure(Route(kind.name, router.url, server.api_key, server_cpu, *before), pace, sockets, rounds)
        server.stop()


def frames_through_ray(pace: float, sockets: int = SOCKETS) -> None:
    """Measure the same through Ray Serve's proxy; the server is a replica, and what Ray does in it is the server's."""
    variables = {"INSTANT_PAUSE": str(pace), "INSTANT_TOKENS": str(TOKENS)}
    slots = {"MAX_CONCURRENT_CONNECTIONS": str(2 * sockets)}
    with RayServe(
        1, "tests.harness.fleet.ray_app:build_instant", arguments={"replicas": 1}, **variables, **slots
    ) as ray:
        (replica,) = ray.wait_running(1)
        assert replica.pid is not None
        route = Route("Ray", ray.url, KEY, partial(cpu_seconds, replica.pid), ray.cpu_seconds, ray.resident_kib)
        measure(route, pace, sockets, 1)


def measure(route: Route, pace: float, sockets: int, rounds: int) -> None:
    """Have so many listeners a reply or more, and print what a frame cost."""
    target = Target("yap", route.url, route.key, words=10, keyed=True)
    run_load(target, 16, 1, 1, first_seed=1)
    memory = route.router_kib() if route.router_kib else 0
    before = route.server(), route.router()
    samples = run_load(target, sockets, rounds, 1, first_seed=1000)
    after = route.server(), route.router()
    total = sum(sample.frames for sample in samples)
    span = max(sample.ended for sample in samples) - min(sample.started for sample in samples)
    ttft = sorted(sample.ttft for sample in samples)
    costs = [(now - then) / total * 1e6 for then, now in zip(before, after, strict=True)]
    print(
        f"scale: {route.name:8} {sockets} sockets, a token in {pace * 1000:3.0f} ms: "
        f"{total / span:8.0f} frames/s  router {costs[1]:5.1f}  server {costs[0]:5.1f} µs CPU a frame  "
        f"TTFT p50 {percentile(ttft, 50) * 1000:6.1f}  p99 {percentile(ttft, 99) * 1000:6.1f} ms"
        + (f"  ({(route.router_kib() - memory) / sockets:.0f} KiB a socket)" if route.router_kib else ""),
        flush=True,
    )


class Listener:
    """One client with a session key: it holds a conversation, and comes back when its server is gone."""

    def __init__(self, url: str, number: int) -> None:
        self.url, self.key = url, f"listener-{number}"
        self.random = random.Random(number)
        self.cut: float | None = None  # when its socket ended
        self.back: float | None = None  # when it heard the next reply's first token after that
        self.attempts = 0
        self.spoken = asyncio.Event()

    async def talk(self) -> None:
        """Have turns until it is cancelled, or until it has come back once."""
        while self.back is None:
            try:
                async with websockets.connect(
                    self.url, additional_headers={"X-API-Key": KEY, "X-Session-Id": self.key}, open_timeout=5
                ) as socket:
                    while self.back is None:
                        await socket.send(
                            f'{{"type":"start","session_id":"{self.key}","history":[],"user_utterance":"hello"}}'
                        )
                        while '"type":"done"' not in (frame := str(await socket.recv())):
                            if '"type":"token"' in frame:
                                if self.cut is not None and self.back is None:
                                    self.back = time.perf_counter()
                                self.spoken.set()
            except (OSError, websockets.WebSocketException, asyncio.TimeoutError):
                if self.cut is None:
                    self.cut = time.perf_counter()
                # Full jitter, from a twentieth of a second.
                await asyncio.sleep(self.random.uniform(0, min(1.0, 0.05 * 2**self.attempts)))
                self.attempts += 1


def takeovers(kind: type[Router], listeners: int = LISTENERS) -> None:
    """Kill one of three servers while everybody speaks, and measure until its listeners hear the next first token."""
    with servers(3, "tests.harness.scripted_process", **SPOKEN) as three, kind([s.port for s in three]) as router:
        router.wait_up()
        assert three[0].process is not None
        taken_over(kind.name, router.url, three[0].process.pid, listeners)


def takeovers_of_ray(listeners: int = LISTENERS) -> None:
    """Do the same with three replicas of Ray."""
    with RayServe(1, arguments={"replicas": 3}, **SPOKEN) as ray:
        victim = ray.wait_running(3)[0].pid
        assert victim is not None
        taken_over("Ray", ray.url, victim, listeners)


def taken_over(name: str, url: str, victim: int, listeners: int) -> None:
    """Kill one of three servers while everybody speaks, and print when its listeners heard something again."""

    async def main() -> list[Listener]:
        everybody = [Listener(url, number) for number in range(listeners)]
        tasks = [asyncio.create_task(one.talk()) for one in everybody]
        for one in everybody:
            await asyncio.wait_for(one.spoken.wait(), 60)
        os.kill(victim, signal.SIGKILL)
        await asyncio.sleep(6)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return everybody

    everybody = asyncio.run(main())
    cut = [one for one in everybody if one.cut is not None]
    back = sorted(one.back - one.cut for one in cut if one.back is not None and one.cut is not None)
    print(
        f"scale: {name:8} a server of three is killed: {len(cut)} of {listeners} listeners were cut, "
        f"{len(back)} came back; first token of their next turn after p50 {percentile(back, 50) * 1000:.0f}  "
        f"p99 {percentile(back, 99) * 1000:.0f} ms; attempts {max(one.attempts for one in cut)} at most",
        flush=True,
    )


def reloads(kind: type[Router], listeners: int = LISTENERS) -> None:
    """Take on a new server while everybody speaks, and count the sockets that were cut."""

    async def main(router: Router, third: int) -> tuple[int, float]:
        everybody = [Listener(router.url, number) for number in range(listeners)]
        tasks = [asyncio.create_task(one.talk()) for one in everybody]
        for one in everybody:
            await asyncio.wait_for(one.spoken.wait(), 60)
        began = time.perf_counter()
        router.servers.append(third)
        router.reload()
        await asyncio.to_thread(router.wait_up)
        took = time.perf_counter() - began
        await asyncio.sleep(3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return sum(one.cut is not None for one in everybody), took

    with (
        servers(3, "tests.harness.scripted_process", **SPOKEN) as three,
        kind([one.port for one in three[:2]]) as router,
    ):
        router.wait_up()
        cut, took = asyncio.run(main(router, three[2].port))
    print(
        f"scale: {kind.name:8} a server is added: {cut} of {listeners} sockets were cut; in use after {took:.1f} s",
        flush=True,
    )


def scale_section(folder: Path) -> None:
    """Run every measurement of routers; the artifact is not needed, since the engines are tables."""
    print("\nscale: routers before servers whose engines are tables")
    kinds = routers()
    with_ray = PYTHON.exists()
    if not with_ray:
        print(f"scale: Ray was not run: {MISSING}")
    for pace in PACES:
        frames_through(pace, kinds)
        if with_ray:
            frames_through_ray(pace)
    for kind in kinds:
        takeovers(kind)
        reloads(kind)
    if with_ray:
        takeovers_of_ray()
