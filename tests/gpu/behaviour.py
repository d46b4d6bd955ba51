#!/usr/bin/env python3
"""Measurements of what a listener notices beyond throughput: the decision's price, barge-in, warmed prefixes, a soak.

    python3 tests/gpu/behaviour.py ARTIFACT [shadow] [barge-in] [prefix] [soak] [--soak-seconds 120]

The artifact must hold a chat model and a classifier. One server serves all sections, but for the half of `shadow`
that has the chat model alone.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import time
import urllib.request
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[2] / "client")]

from tests.benchmarks.load import Target, run_load
from tests.benchmarks.work import figures, work
from tests.client import Options, TurnRecord, connect
from tests.client.statistics import percentile
from tests.harness.server import STEADY, Server
from yap_client import Talk, Token, Usage, YapError

MANY = {
    **STEADY,
    "WS_MAX_MESSAGES_PER_WINDOW": "0",
    "WS_MAX_CANCELS_PER_WINDOW": "0",
    "MAX_SESSIONS": "20000",
    "MAX_CONCURRENT_CONNECTIONS": "1100",
}
SECTIONS = ("shadow", "barge-in", "prefix", "soak")
STREAMS = (1, 64)
WORDS = 200


def gauges(server: Server) -> dict[str, float]:
    """Return all of the server's figures, by name and labels."""
    with urllib.request.urlopen(server.http + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^([^#\s]+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)}


def line(name: str, values: list[float]) -> str:
    ordered = sorted(value * 1000 for value in values)
    cells = "  ".join(f"p{p} {percentile(ordered, p):8.1f} ms" for p in (50, 95, 99))
    return f"{name:44} {cells}  ({len(ordered)})"


def ready(server: Server) -> None:
    """Wait for a server, and warm it up."""
    server.wait_ready(400)
    run_load(Target("yap", server.url, server.api_key, words=WORDS), 32, 2, 8, first_seed=1)


def first_tokens(server: Server, name: str) -> dict[int, float]:
    """Measure the median time to first token by number of streams, no two prompts sharing anything."""
    medians = {}
    for count in STREAMS:
        rounds = 30 if count == 1 else 6
        target = Target("yap", server.url, server.api_key, words=WORDS)
        found = figures(count, run_load(target, count, rounds, 8, first_seed=10_000_000 + count * 10_000))
        medians[count] = found.ttft_p50
        print(found.line(f"shadow, {name}"), flush=True)
    return medians


def shadow(both: Server, alone: dict[int, float]) -> None:
    """Measure the time to first token with the classifier and without, the prefill being the same."""
    medians = first_tokens(both, "both")
    buckets = [
        (float(bound), count)
        for name, count in gauges(both).items()
        if (bound := name.partition('yap_tool_seconds_bucket{le="')[2].rstrip('"}').replace("+Inf", "inf"))
    ]
    total = buckets[-1][1]
    p99 = next(bound for bound, count in buckets if count >= 0.99 * total)
    print(f"shadow: {total:.0f} decisions, 99 % of them within {p99 * 1000:g} ms")
    for count, median in medians.items():
        print(
            f"shadow: {count} streams, TTFT p50 with the decision is {median / alone[count]:.3f} × chat only",
            flush=True,
        )


async def interrupted(talk: Talk, number: int, source: random.Random) -> float:
    """Measure one barge-in: the time from the new `start` to the first token of the new turn."""
    first, second = work(20_000_000 + number * 2, WORDS), work(20_000_001 + number * 2, WORDS)
    old = TurnRecord(talk.say(first.utterance, persona=first.persona, history=[]))
    for _ in range(source.randint(5, 40)):
        if old.ended is None:
            await old.first_token()
    began = time.perf_counter()
    await TurnRecord(talk.say(second.utterance, persona=second.persona, history=[])).first_token()
    waited = time.perf_counter() - began
    await talk.cancel()
    return waited


def barge_in(server: Server, streams: int = 64, rounds: int = 4) -> None:
    """Interrupt every stream again and again."""
    waits: list[float] = []

    async def one(number: int) -> None:
        source = random.Random(number)
        async with connect(Options(url=server.url, api_key=server.api_key)) as talk:
            for turn in range(rounds):
                waits.append(await interrupted(talk, number * rounds + turn, source))

    async def everyone() -> None:
        await asyncio.gather(*(one(number) for number in range(streams)))

    asyncio.run(everyone())
    print(line(f"barge-in, {streams} streams: start to first token", waits))
    time.sleep(1.5)
    found = gauges(server)
    held = [found[f'yap_engine_requests{{state="{state}"}}'] for state in ("running", "waiting")]
    print(f"after: running {held[0]:g}, waiting {held[1]:g}, KV cache in use {found['yap_engine_kv_cache_usage']:.4f}")


def prefix(server: Server, rounds: int = 8) -> None:
    """Measure the first turn behind a 5,000-token persona and history: cold, and after `warm_history`."""

    async def measure() -> None:
        times: dict[bool, list[float]] = {False: [], True: []}
        usage: dict[bool, Usage] = {}
        async with connect(Options(url=server.url, api_key=server.api_key)) as talk:
            for number in range(rounds * 2):
                warm = bool(number % 2)
                text = work(30_000_000 + number, 780).persona
                history = [
                    {"role": role, "content": work(31_000_000 + number * 100 + turn, 110).persona}
                    for turn in range(12)
                    for role in ("user", "assistant")
                ][:11]
                if warm:
                    await talk.warm(persona=text, history=history)
                turn = await TurnRecord(talk.say("And then?", persona=text, history=history)).whole()
                if turn.ttft is None:
                    raise YapError(f"no token: {turn.problem}")
                times[warm].append(turn.ttft)
                usage[warm] = turn.usage
        for warm in (False, True):
            label = "with warm_history" if warm else "cold"
            counts = f"{usage[warm].cached_tokens} of {usage[warm].prompt_tokens} prompt tokens cached"
            print(line(f"prefix, {label}: TTFT", times[warm]), counts)
        ratio = percentile(sorted(times[False]), 50) / percentile(sorted(times[True]), 50)
        print(f"prefix: the first token comes {ratio:.1f} × sooner after warm_history", flush=True)

    asyncio.run(measure())


def resident(pid: int) -> float:
    """Return a process's resident memory in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found.group(1)) / 1024


def soak(server: Server, clients: int = 256, seconds: float = 120) -> bool:
    """Run listeners who interrupt, cancel and hang up at random; afterwards everything must be where it began."""
    assert server.process is not None
    pid = server.process.pid
    options = Options(url=server.url, api_key=server.api_key)
    run_load(Target("yap", server.url, server.api_key, words=50), clients, 1, 8, first_seed=40_000_000)
    time.sleep(1.5)
    memory_before, before = resident(pid), gauges(server)
    counts = {"turns": 0, "barge-ins": 0, "cancels": 0, "hang-ups": 0, "errors": 0}

    async def one(number: int, quarter: int, until: float) -> None:
        source = random.Random(number * 4 + quarter)
        serial = quarter * 1000
        while time.monotonic() < until:
            # Three sessions in turn: what sessions remember must not grow all the time.
            session = f"soak-{number}-{serial % 3}"
            async with connect(options, session=session) as talk:
                for turn_number in range(source.randint(1, 6)):
                    serial += 1
                    item = work(50_000_000 + number * 10_000 + serial, source.randint(10, 120))
                    history = None if turn_number else []
                    turn = TurnRecord(talk.say(item.utterance, persona=item.persona, history=history))
                    act = source.choice(["finish", "finish", "cancel", "barge", "leave"])
                    stop_at = source.randint(1, 60)
                    seen = 0
                    while turn.ended is None and (act == "finish" or seen < stop_at):
                        event = await turn.turn.__anext__()
                        turn.add(event)
                        seen += isinstance(event, Token)
                    if turn.error:
                        counts["errors"] += 1
                    if turn.ended is not None:
                        counts["turns"] += 1
                    elif act == "cancel":
                        await talk.cancel()
                        counts["cancels"] += 1
                    elif act == "barge":
                        await TurnRecord(talk.say("Wait.")).whole()
                        counts["barge-ins"] += 1
                    else:
                        counts["hang-ups"] += 1
                        if talk._connection.socket is not None:
                            talk._connection.socket.transport.abort()
                        break

    async def everyone(quarter: int) -> None:
        until = time.monotonic() + seconds / 4
        await asyncio.gather(*(one(number, quarter, until) for number in range(clients)))

    # In quarters: sessions and caches fill up to their bounds at first, and what leaks never stops.
    memory = [memory_before]
    for quarter in range(4):
        asyncio.run(everyone(quarter))
        time.sleep(3)
        memory.append(resident(pid))
    after = gauges(server)
    print(f"soak: {clients} clients, {seconds:.0f} s: {counts}")
    print(f"soak: memory {' → '.join(f'{mib:.0f}' for mib in memory)} MiB by quarters")
    ok = counts["errors"] == 0 and memory[4] - memory[3] < 0.02 * memory[3]
    for name in (
        'yap_engine_requests{state="running"}',
        'yap_engine_requests{state="waiting"}',
        "yap_connections_active",
        "yap_engine_kv_cache_usage",
    ):
        print(f"soak: {name} {before[name]:g} → {after[name]:g}")
        ok = ok and after[name] <= before[name] + 1e-6
    print(f"soak: {'clean' if ok else 'NOT CLEAN'}", flush=True)
    return ok


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--soak-seconds", type=float, default=120)
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"expected sections out of {', '.join(SECTIONS)}, found {', '.join(sorted(unknown))}")
    alone: dict[int, float] = {}
    # Both leave the chat engine the same memory, so that only the classifier differs.
    if "shadow" in arguments.sections:
        with Server(arguments.artifact, **MANY, DEPLOY_MODE="chat", CHAT_GPU_FRAC="0.70") as server:
            ready(server)
            alone = first_tokens(server, "chat only")
            server.stop()
    ok = True
    with Server(arguments.artifact, **MANY, DEPLOY_MODE="both") as server:
        ready(server)
        if "shadow" in arguments.sections:
            shadow(server, alone)
        if "barge-in" in arguments.sections:
            barge_in(server)
        if "prefix" in arguments.sections:
            prefix(server)
        if "soak" in arguments.sections:
            ok = soak(server, seconds=arguments.soak_seconds)
        status = server.stop()
        print(f"the server exited {status}")
    sys.exit(0 if ok and status == 0 else 1)


if __name__ == "__main__":
    main()
