"""The gateway's cost around an engine that costs nothing: per token, per idle connection, per interruption."""

from __future__ import annotations

import asyncio
import os
import re
import time
from pathlib import Path

from runtime.server.life.served import UNNAMED
from tests.benchmarks.load import Target, run_load
from tests.client import Options, TurnRecord, connect
from tests.client.prepared import REPLY, STEP, STREAMS, TURNS, measure
from tests.client.statistics import percentile
from tests.harness.server import Server
from yap_client import Talk

CONNECTIONS = (1, 64, 256, 1000)
SHORT, LONG = 150, 4000
LIMITS = {
    "MAX_CONCURRENT_CONNECTIONS": "1100",
    "WS_MAX_MESSAGES_PER_WINDOW": "0",
    "WS_MAX_CANCELS_PER_WINDOW": "0",
    "MAX_SESSIONS": "50000",
}


def instant(tokens: int, pause: float = 0.0, **more: str) -> Server:
    """Start a server whose engine replies out of a table."""
    variables = LIMITS | {"INSTANT_TOKENS": str(tokens), "INSTANT_PAUSE": str(pause)} | more
    return Server(Path(), module="tests.benchmarks.instant", **variables)


def cpu_seconds(server: Server) -> float:
    """Return the user and system time that the server has used so far."""
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_kib(server: Server) -> int:
    """Return the server's resident memory in KiB."""
    assert server.process is not None
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found
    return int(found.group(1))


def cost(server: Server, tokens: int, connections: int, rounds: int, door: str = "yap") -> float:
    """Measure the server's CPU in microseconds per token through one of its doors; prints the run's line."""
    targets = {
        "yap": Target("yap", server.url, server.api_key, words=10),
        "openai": Target("openai", server.http, server.api_key, model=UNNAMED, words=10, max_tokens=tokens),
    }
    target = targets[door]
    before, began = cpu_seconds(server), time.perf_counter()
    samples = run_load(target, connections, rounds, 1, first_seed=connections * 100_000 + tokens)
    used, elapsed = cpu_seconds(server) - before, time.perf_counter() - began
    total = sum(sample.tokens for sample in samples)
    span = max(sample.ended for sample in samples) - min(sample.started for sample in samples)
    frames = sum(sample.frames for sample in samples) / total
    assert total == tokens * connections * rounds, f"expected whole replies, found {total} tokens"
    print(
        f"gateway: {door:6} {connections:5} connections, replies of {tokens:5}: {total / span:10.0f} tok/s  "
        f"{used / total * 1e6:6.1f} µs server CPU per token  {frames:.2f} frames per token  ({elapsed:.0f} s)",
        flush=True,
    )
    return used / total * 1e6


def idle_memory(server: Server, connections: int = 1000) -> None:
    """Measure the resident memory that an open, idle connection adds."""

    async def main() -> tuple[int, int]:
        options = Options(url=server.url, api_key=server.api_key)
        # Some connections first, so that what the first ones allocate for good is not counted.
        async with connect(options):
            pass
        before = resident_kib(server)
        doors = [connect(options) for _ in range(connections)]
        for door in doors:
            await door.__aenter__()
        await asyncio.sleep(1)
        after = resident_kib(server)
        await asyncio.gather(*(door.__aexit__(None, None, None) for door in doors))
        return before, after

    before, after = asyncio.run(main())
    print(f"gateway: {(after - before) / connections:.1f} KiB per idle connection at {connections}", flush=True)


async def speaking(talk: Talk, number: int) -> TurnRecord:
    """Begin a turn, and wait for its first token."""
    return await TurnRecord(talk.say(f"Tell me more, {number}.", history=[])).first_token()


def interruptions(server: Server, rounds: int = 200) -> None:
    """Measure from the client's message to the server's: `cancel` → `done`, and new `start` → first new token."""

    async def main() -> tuple[list[float], list[float]]:
        cancels, barge_ins = [], []
        async with connect(Options(url=server.url, api_key=server.api_key)) as talk:
            for number in range(rounds):
                await speaking(talk, number)
                began = time.perf_counter()
                await talk.cancel()
                cancels.append(time.perf_counter() - began)
                await speaking(talk, number)
                began = time.perf_counter()
                await TurnRecord(talk.say("Wait.", history=[])).first_token()
                barge_ins.append(time.perf_counter() - began)
                await talk.cancel()
        return sorted(cancels), sorted(barge_ins)

    for name, times in zip(("cancel → done", "new start → first new token"), asyncio.run(main()), strict=True):
        cells = "  ".join(f"p{p} {percentile(times, p) * 1000:.2f} ms" for p in (50, 95, 99))
        print(f"gateway: {name}: {cells}", flush=True)


def gateway_section(folder: Path) -> None:
    """Run every measurement of the gateway; the artifact is not needed, since the engine is a table."""
    print("\ngateway: the server around an engine that yields instantly")
    with instant(SHORT) as server:
        server.wait_ready()
        idle_memory(server)
        run_load(Target("yap", server.url, server.api_key, words=10), 8, 2, 1, first_seed=1)
        for connections in CONNECTIONS:
            cost(server, SHORT, connections, max(2, 512 // connections))
        short = cost(server, SHORT, 64, 60)
        http = cost(server, SHORT, 64, 60, "openai")
        server.stop()
    with instant(LONG) as server:
        server.wait_ready()
        long = cost(server, LONG, 64, 2)
        server.stop()
    print(f"gateway: a token of a {LONG}-token reply costs {long / short:.3f} × one of a {SHORT}-token reply")
    print(f"gateway: a token over HTTP costs {http / short:.3f} × one over the WebSocket")
    with instant(LONG, pause=0.005) as server:
        server.wait_ready()
        interruptions(server)
        server.stop()


def prepare_section(folder: Path) -> None:
    """Measure at the gateway; the artifact is not needed, since the engine is a table with a GPU's steps."""
    print(f"\nprepare: {STREAMS} speakers, replies of {REPLY} tokens, {STEP * 1000:.0f} ms a step")
    with instant(REPLY, pause=STEP, WS_MAX_PREPARES_PER_WINDOW="0", CHAT_MAX_OUT=str(REPLY)) as server:
        server.wait_ready()
        measure(server, STREAMS, TURNS, words=10)
        server.stop()
