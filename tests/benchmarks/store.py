"""What the session store costs: server CPU a token, writes a second, the first token's time; and a takeover's time.

Measured before a table alone, and, where there is an artifact, before one behind rendering and vLLM's output handling,
which a deployed server always has. Servers with and without a store converse at the same time, and a second one without
says what chance does.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import urllib.request
from contextlib import AsyncExitStack, ExitStack
from itertools import count
from pathlib import Path
from statistics import mean, median

import uvloop
import websockets

from runtime.deployment.metrics import Metrics
from runtime.deployment.session_store import parse
from runtime.engines import Sampling
from runtime.host.ratelimit import SlidingWindow
from runtime.text.prompt import Message
from runtime.turns.principal import Principal
from runtime.turns.sessions.exchange import Exchange
from runtime.turns.sessions.keeper import PACE_S, SessionKeeper
from runtime.turns.sessions.registry import SessionRegistry
from runtime.turns.sessions.session import Session
from runtime.turns.stores.sealing import Sealer
from runtime.turns.stores.valkey_store import ValkeyStore
from runtime.wire.messages import DEFAULT_BOUNDS, ChatPrompt
from tests.benchmarks.gateway import instant
from tests.client.statistics import percentile
from tests.harness.server import Server
from tests.harness.stores.session_store import MISSING, VALKEY, valkey
from tests.harness.stores.store_cpu import SERVER, STORE

# A token comes in the time that an H100 takes with 64 streams of a model of 8B shape.
STREAMS, TOKENS, PAUSE = 64, 150, 0.0086
# A short conversation, of which the store's part is larger: it is taken and first written in it; and one that goes on.
TURNS, LONG = 5, 20
# Longest time between a reply's end and the next turn, in seconds: people do not speak in step.
LISTEN = 0.3
ROUNDS, LONG_ROUNDS, SHARE_ROUNDS = 5, 3, 3
TAKEOVERS = 200
BATCHES = count()  # of sessions, so that none is had twice
PERSONA = "You are Mia. " + "You like the sea and long walks along it. " * 40


async def converse(server: Server, stream: int, turns: int, *, at_once: bool = False) -> list[float]:
    """Have a conversation that grows; return the server's own times to the first token, in ms, but the first turn's."""
    headers = {"X-API-Key": server.api_key}
    times = []
    waits = random.Random(stream)
    async with websockets.connect(server.url, additional_headers=headers, compression=None) as socket:
        for number in range(turns):
            if not at_once:
                await asyncio.sleep(waits.uniform(0, LISTEN if number else TOKENS * PAUSE))
            message = {"type": "start", "session_id": f"s{stream}", "user_utterance": f"Tell me more about {number}."}
            await socket.send(json.dumps(message if number else {**message, "persona_text": PERSONA}))
            while not (frame := str(await socket.recv())).startswith('{"type":"done"'):
                pass
            if number:
                times.append(json.loads(frame)["usage"]["ttft_ms"])
    return times


def used(server: Server) -> float:
    """Return the CPU seconds of a server's threads so far, to the nanosecond, which `/proc/PID/stat` does not have."""
    assert server.process is not None
    tasks = Path(f"/proc/{server.process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def measure(servers: dict[str, Server], turns: int = TURNS) -> dict[str, float]:
    """Return each server's µs of CPU a token, where all converse at the same time in sessions that nobody had before.

    The store would know them, and prompts would be longer on its side.
    """
    first = next(BATCHES) * STREAMS

    async def main() -> None:
        streams = range(first, first + STREAMS)
        await asyncio.gather(*(converse(server, stream, turns) for server in servers.values() for stream in streams))

    before = {name: used(server) for name, server in servers.items()}
    asyncio.run(main())
    tokens = STREAMS * turns * TOKENS
    return {name: (used(server) - before[name]) / tokens * 1e6 for name, server in servers.items()}


def told(server: Server, *names: str) -> list[float]:
    """Return what a server tells under names of its metrics."""
    with urllib.request.urlopen(f"{server.http}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = [re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE) for name in names]
    return [float(one[1]) for one in found if one]


def written(server: Server) -> float:
    """Return how many sessions a server has written."""
    (writes,) = told(server, 'yap_session_store_operations_total{kind="write"}')
    return writes


def share(front: str, kinds: dict[str, dict[str, str]]) -> None:
    """Measure the store's part of a server's CPU inside it: what else the machine does falls on both sides."""
    for name, variables in kinds.items():
        with instant(TOKENS, PAUSE, INSTANT_WATCH_STORE="1", **variables) as server:
            server.wait_ready()
            measure_few(server)
            parts = []
            for _ in range(SHARE_ROUNDS):
                before, writes, began = told(server, STORE, SERVER), written(server), time.perf_counter()
                measure({name: server})
                took, wrote = time.perf_counter() - began, written(server) - writes
                store, all_ = (now - then for now, then in zip(told(server, STORE, SERVER), before, strict=True))
                turns = STREAMS * TURNS
                parts.append(store / (all_ - store))
                print(
                    f"store: {front}, {name}: {store / turns * 1e6:.0f} µs of CPU a turn in the store's own code, "
                    f"{parts[-1]:+.1%} of all else; {turns / took:.0f} turns and {wrote / took:.0f} writes a second, "
                    f"{wrote / turns:.2f} writes a turn",
                    flush=True,
                )
            print(f"store: {front}, {name}: {median(parts):+.1%} of all else in the median")


async def take_over(one: Server, other: Server, stream: int) -> tuple[float, float]:
    """Speak on one server, then on the other; return the times to the first token of the last turns on each, in ms."""
    first = await converse(one, stream, 3, at_once=True)
    await asyncio.sleep(PACE_S + 0.05)  # until it is written
    headers = {"X-API-Key": other.api_key}
    async with websockets.connect(other.url, additional_headers=headers, compression=None) as socket:
        await socket.send(json.dumps({"type": "start", "session_id": f"s{stream}", "user_utterance": "And then?"}))
        while not (frame := str(await socket.recv())).startswith('{"type":"done"'):
            pass
    return first[-1], json.loads(frame)["usage"]["ttft_ms"]


def first_tokens(url: str) -> None:
    """Measure the first token's time by a client's clock, with a store and without, a turn here and a turn there."""

    async def turn(socket: websockets.ClientConnection, stream: int) -> float:
        began = time.perf_counter()
        await socket.send(json.dumps({"type": "start", "session_id": f"s{stream}", "user_utterance": "And then?"}))
        first = 0.0
        while not (frame := str(await socket.recv())).startswith('{"type":"done"'):
            if not first and frame.startswith('{"type":"token"'):
                first = time.perf_counter() - began
        return first * 1000

    async def main(*servers: Server) -> None:
        found: list[list[float]] = [[] for _ in servers]
        async with AsyncExitStack() as stack:
            sockets = []
            for server in servers:
                door = websockets.connect(server.url, additional_headers={"X-API-Key": server.api_key})
                sockets.append(await stack.enter_async_context(door))
            for number in range(TAKEOVERS * 2 + 1):
                for which in (0, 1) if number % 2 else (1, 0):
                    found[which].append(await turn(sockets[which], number // 10))  # a session of ten turns
                await asyncio.sleep(0.005)
        for name, times in zip(("without a store", "with one"), found, strict=True):
            cells = "  ".join(f"p{p} {percentile(sorted(times[1:]), p):.2f} ms" for p in (50, 99))
            print(f"store: first token {name}, by the client's clock: {cells}")
        added = median(other - one for one, other in list(zip(*found, strict=True))[1:])
        print(f"store: first token with a store: {added:+.3f} ms in the median of {TAKEOVERS * 2} pairs", flush=True)

    with instant(3, 0.0) as one, instant(3, 0.0, SESSION_STORE=url) as other:
        one.wait_ready()
        other.wait_ready()
        asyncio.run(main(one, other))


def store_section(folder: Path) -> None:
    """Measure servers with a store and without, that take turns, and what a takeover adds; no artifact is needed."""
    print(f"\nstore: {STREAMS} conversations of {TURNS} turns and of {LONG}")
    print(f"store: {TOKENS} tokens a reply, {PAUSE * 1000:g} ms apart")
    if VALKEY is None:
        print(f"store: not measured: {MISSING}")
        return
    with valkey() as store:
        key = store.folder / "key"
        key.write_text("5a" * 32)
        kinds = {
            "valkey": {"SESSION_STORE": store.url},
            "valkey, encrypted": {"SESSION_STORE": store.url, "SESSION_STORE_KEY_FILE": str(key)},
        }
        fronts: dict[str, dict[str, str]] = {"a table": {}}
        if (folder / "tokenizer.json").exists():
            fronts["vLLM's output handling"] = {"INSTANT_MODEL": str(folder), "INSTANT_ENGINE": "vllm"}
        for front, more in fronts.items():
            compare(front, more, store.url, TURNS, ROUNDS)
            compare(front, more, store.url, LONG, LONG_ROUNDS)
            share(front, {name: variables | more for name, variables in kinds.items()})
        first_tokens(store.url)
        write_cost(store.url)
        variables = {"SESSION_STORE": store.url}
        with instant(3, 0.0, **variables) as one, instant(3, 0.0, **variables) as other:
            one.wait_ready()
            other.wait_ready()

            async def main() -> list[tuple[float, float]]:
                return [await take_over(one, other, 10_000 + number) for number in range(TAKEOVERS)]

            pairs = asyncio.run(main())
            known, taken = (sorted(values) for values in zip(*pairs, strict=True))
            for name, values in (("a known session", known), ("one that is taken over", taken)):
                cells = "  ".join(f"p{p} {percentile(values, p):.2f} ms" for p in (50, 99))
                print(f"store: first token of {name}: {cells}")


def compare(front: str, more: dict[str, str], url: str, turns: int, rounds: int) -> None:
    """Compare servers with a store and without, in conversations of so many turns."""
    # Between the two without: of servers that converse at once each later one uses a little more, whatever it does.
    kinds = {"memory": more, "valkey": more | {"SESSION_STORE": url}, "again": more}
    found: list[dict[str, float]] = []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(instant(TOKENS, PAUSE, **variables)) for name, variables in kinds.items()}
        for server in servers.values():
            server.wait_ready()
            measure_few(server)
        for _ in range(rounds):
            before = written(servers["valkey"])
            found.append(measure(servers, turns))
            cells = ", ".join(f"{name} {cpu:.1f} µs" for name, cpu in found[-1].items())
            writes = (written(servers["valkey"]) - before) / (STREAMS * turns)
            print(f"store: {front}, {turns} turns: server CPU a token: {cells}; {writes:.2f} writes a turn", flush=True)
        for server in servers.values():
            server.stop()
    for name in ("valkey", "again"):  # the latter as a measure of chance
        others = ("memory",) if name == "again" else ("memory", "again")
        ratios = [one[name] / mean(one[other] for other in others) - 1 for one in found]
        print(
            f"store: {front}, {turns} turns: {name} uses {median(ratios):+.1%} of the CPU without a store "
            f"(by round: {min(ratios):+.1%} to {max(ratios):+.1%})",
            flush=True,
        )


def write_cost(url: str) -> None:
    """Measure what the server's process spends on a write, by how many sessions one round has."""

    async def main() -> None:
        address = parse(url)
        assert address is not None
        store = ValkeyStore(address, ttl=100, timeout=5)
        metrics = Metrics().session_store
        exchange = Exchange(Sealer(), metrics, bounds=DEFAULT_BOUNDS, max_bytes=65_536)
        keeper = SessionKeeper(store, exchange, metrics, pace=0.0)
        registry = SessionRegistry(
            lambda name: Session(name, Sampling(), ("", ""), SlidingWindow(4, 60)),
            idle_ttl=100,
            maximum=1000,
            keeper=keeper,
        )
        holder = Principal("bench")
        sessions = [registry.open(holder, f"s{number}") for number in range(64)]
        said = [Message("user" if n % 2 == 0 else "assistant", "the sea was calm and " * 20) for n in range(16)]
        for session in sessions:
            session.persona = PERSONA
            session.history.extend(said)
            await keeper.take(session)
        writing = asyncio.create_task(keeper.run())
        for together in (1, 4, 16, 64):
            rounds = 256 // together
            spent = []
            for busy in (True, False):  # the same with nothing to write, which is taken off
                before = time.process_time()
                for number in range(rounds):
                    for session in sessions[number * together % 64 :][:together] if busy else ():
                        session.set_persona(ChatPrompt(persona=session.persona))
                    await asyncio.sleep(0.02)
                spent.append(time.process_time() - before)
            cost = (spent[0] - spent[1]) / 256 * 1e6
            print(f"store: {cost:5.0f} µs of CPU a session that is written, {together} in a round", flush=True)
        writing.cancel()
        await keeper.stop()

    uvloop.run(main())


def measure_few(server: Server) -> None:
    """Let a server warm up."""

    async def main() -> None:
        await asyncio.gather(*(converse(server, 1_000_000 + stream, 1) for stream in range(8)))

    asyncio.run(main())
