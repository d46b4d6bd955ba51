"""What the session store costs: server CPU a token, writes a second, the first token's time; and a takeover's time."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import uvloop
import websockets

from runtime.deployment.metrics import Metrics
from runtime.deployment.session_store import parse
from runtime.engines import Sampling
from runtime.host.ratelimit import SlidingWindow
from runtime.text.prompt import Message
from runtime.turns.principal import Principal
from runtime.turns.sessions.exchange import Exchange
from runtime.turns.sessions.keeper import SessionKeeper
from runtime.turns.sessions.registry import SessionRegistry
from runtime.turns.sessions.session import Session
from runtime.turns.stores.sealing import Sealer
from runtime.turns.stores.valkey_store import ValkeyStore
from runtime.wire.messages import DEFAULT_BOUNDS, ChatPrompt
from tests.benchmarks.gateway import cpu_seconds, instant
from tests.client.statistics import percentile
from tests.harness.server import Server
from tests.harness.stores.session_store import MISSING, VALKEY, valkey
from tests.harness.stores.store_cpu import SERVER, STORE

STREAMS, TURNS, TOKENS, PAUSE = 64, 5, 150, 0.0086
# Longest time between a reply's end and the next turn, in seconds: people do not speak in step.
LISTEN = 0.3
ROUNDS = 5
TAKEOVERS = 200
PERSONA = "You are Mia. " + "You like the sea and long walks along it. " * 40


async def converse(server: Server, stream: int, turns: int) -> list[float]:
    """Have a conversation that grows; return the server's own times to the first token, in ms, but the first turn's."""
    headers = {"X-API-Key": server.api_key}
    times = []
    waits = random.Random(stream)
    async with websockets.connect(server.url, additional_headers=headers, compression=None) as socket:
        for number in range(turns):
            await asyncio.sleep(waits.uniform(0, LISTEN if number else TOKENS * PAUSE))
            message = {"type": "start", "session_id": f"s{stream}", "user_utterance": f"Tell me more about {number}."}
            await socket.send(json.dumps(message if number else {**message, "persona_text": PERSONA}))
            while not (frame := str(await socket.recv())).startswith('{"type":"done"'):
                pass
            if number:
                times.append(json.loads(frame)["usage"]["ttft_ms"])
    return times


def measure(server: Server, round_: int) -> tuple[float, list[float], float]:
    """Return µs of server CPU a token, the times to the first token, and seconds of it all."""

    async def main() -> list[list[float]]:
        streams = (converse(server, round_ * STREAMS + stream, TURNS) for stream in range(STREAMS))
        return await asyncio.gather(*streams)

    before, began = cpu_seconds(server), time.perf_counter()
    times = asyncio.run(main())
    took = time.perf_counter() - began
    used = cpu_seconds(server) - before
    return used / (STREAMS * TURNS * TOKENS) * 1e6, sorted(time for found in times for time in found), took


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


def share(kinds: dict[str, dict[str, str]]) -> None:
    """Measure the store's part of a server's CPU inside it: what else the machine does falls on both sides."""
    for name, variables in kinds.items():
        with instant(TOKENS, PAUSE, INSTANT_WATCH_STORE="1", **variables) as server:
            server.wait_ready()
            measure_few(server)
            for round_ in range(ROUNDS):
                before, writes = told(server, STORE, SERVER), written(server)
                _, _, took = measure(server, round_)
                store, all_ = (now - then for now, then in zip(told(server, STORE, SERVER), before, strict=True))
                turns = STREAMS * TURNS
                print(
                    f"store: {name}: {store / turns * 1e6:.0f} µs a turn in the store's own code and its writes to the "
                    f"socket, {store / (all_ - store):+.1%} of all else; {took / TURNS:.1f} s a turn, "
                    f"{(written(server) - writes) / turns:.2f} writes a turn",
                    flush=True,
                )


async def take_over(one: Server, other: Server, stream: int) -> tuple[float, float]:
    """Speak on one server, then on the other; return the times to the first token of the last turns on each, in ms."""
    first = await converse(one, stream, 3)
    await asyncio.sleep(0.05)
    headers = {"X-API-Key": other.api_key}
    async with websockets.connect(other.url, additional_headers=headers, compression=None) as socket:
        await socket.send(json.dumps({"type": "start", "session_id": f"s{stream}", "user_utterance": "And then?"}))
        while not (frame := str(await socket.recv())).startswith('{"type":"done"'):
            pass
    return first[-1], json.loads(frame)["usage"]["ttft_ms"]


def store_section(folder: Path) -> None:
    """Measure servers with a store and without, that take turns, and what a takeover adds; no artifact is needed."""
    print(f"\nstore: {STREAMS} conversations of {TURNS} turns, {TOKENS} tokens a reply, {PAUSE * 1000:g} ms apart")
    if VALKEY is None:
        print(f"store: not measured: {MISSING}")
        return
    with valkey() as store:
        key = store.folder / "key"
        key.write_text("5a" * 32)
        kinds = {
            "memory": {},
            "valkey": {"SESSION_STORE": store.url},
            "valkey, encrypted": {"SESSION_STORE": store.url, "SESSION_STORE_KEY_FILE": str(key)},
        }
        compare(kinds)
        share({name: variables for name, variables in kinds.items() if variables})
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


def compare(kinds: dict[str, dict[str, str]]) -> None:
    """Measure kinds of servers that are all up and take turns, so that whatever else the machine does falls on all."""
    costs: list[dict[str, float]] = []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(instant(TOKENS, PAUSE, **variables)) for name, variables in kinds.items()}
        for server in servers.values():
            server.wait_ready()
            measure_few(server)
        for round_ in range(ROUNDS):
            costs.append({})
            for name in sorted(kinds, reverse=bool(round_ % 2)):
                before = written(servers[name])
                cost, times, _ = measure(servers[name], round_)
                costs[-1][name] = cost
                ttft = f"p50 {percentile(times, 50):5.1f} ms p99 {percentile(times, 99):5.1f} ms"
                writes = (written(servers[name]) - before) / (STREAMS * TURNS)
                print(f"store: {name:18} {cost:6.2f} µs server CPU per token  TTFT {ttft}  {writes:.2f} writes a turn")
        for server in servers.values():
            server.stop()
    for name in list(kinds)[1:]:
        ratios = sorted(cost[name] / cost["memory"] - 1 for cost in costs)
        added = sorted(cost[name] - cost["memory"] for cost in costs)[ROUNDS // 2] * TOKENS
        print(
            f"store: {name}: {ratios[ROUNDS // 2]:+.1%} of the gateway alone "
            f"(by round: {ratios[0]:+.1%} to {ratios[-1]:+.1%}), {added:+.0f} µs a turn"
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
            used = []
            for busy in (True, False):  # the same with nothing to write, which is taken off
                before = time.process_time()
                for number in range(rounds):
                    for session in sessions[number * together % 64 :][:together] if busy else ():
                        session.set_persona(ChatPrompt(persona=session.persona))
                    await asyncio.sleep(0.02)
                used.append(time.process_time() - before)
            cost = (used[0] - used[1]) / 256 * 1e6
            print(f"store: {cost:5.0f} µs of CPU a session that is written, {together} in a round", flush=True)
        writing.cancel()
        await keeper.stop()

    uvloop.run(main())


def measure_few(server: Server) -> None:
    """Let a server warm up."""

    async def main() -> None:
        await asyncio.gather(*(converse(server, 1_000_000 + stream, 1) for stream in range(8)))

    asyncio.run(main())
