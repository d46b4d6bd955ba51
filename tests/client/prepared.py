"""What `prepare` is worth: from a `start` to its first token, with its reply ready, with another one, and without.

Many speakers talk at once, each in a connection of its own, and each turn is one of the three by lot, so that whatever
the machine does falls on all alike.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import websockets
from websockets.asyncio.client import ClientConnection

from tests.client.statistics import percentile
from tests.harness.server import Server

# What comes before a `start`: nothing, what it will say, or something else.
WAYS = ("without", "hit", "miss")
STREAMS, TURNS = 64, 12
# Seconds between the moment that a recognizer believes in an end and the moment that it is sure; and of silence.
BELIEF, SILENCE = (0.3, 0.9), (0.2, 0.8)
REPLY, STEP = 60, 0.008
SYLLABLES = ("ba", "lo", "mi", "ren", "ta", "vor", "sel", "ku", "den", "ost", "pri", "nal")


@dataclass(frozen=True)
class Spoken:
    """One turn: which way it went, seconds from its `start` to the first token, and whether that had been ready."""

    way: str
    first: float
    prepared: bool


async def _turn(socket: ClientConnection, seed: int, way: str, chance: random.Random, words: int) -> Spoken:
    source = random.Random(seed)
    persona = " ".join("".join(source.choices(SYLLABLES, k=2)) for _ in range(words))
    said = f"Tell me long story {seed} about the sea and do not stop."
    asked = {"session_id": f"prepared-{seed}", "persona_text": f"{seed} {persona}.", "history": []}
    start = json.dumps({"type": "start", **asked, "user_utterance": said})
    if way != "without":
        utterance = said if way == "hit" else "Wait."
        await socket.send(json.dumps({"type": "prepare", **asked, "user_utterance": utterance}))
    await asyncio.sleep(chance.uniform(*BELIEF))
    began, first = time.perf_counter(), 0.0
    await socket.send(start)
    while True:
        frame = await socket.recv(decode=False)
        if not first and frame.startswith(b'{"type":"token"'):
            first = time.perf_counter() - began
        elif frame.startswith(b'{"type":"error"'):
            raise RuntimeError(frame.decode())
        elif frame.startswith(b'{"type":"done"'):
            break
    prepared = bool(json.loads(frame)["usage"].get("prepared", False))
    await asyncio.sleep(chance.uniform(*SILENCE))
    return Spoken(way, first, prepared)


async def speak(
    url: str, key: str, streams: int | range, turns: int, words: int, ways: Sequence[str] = WAYS, first_seed: int = 0
) -> list[Spoken]:
    """Let so many speak at once, or those of these numbers, each so many turns."""
    numbers = range(streams) if isinstance(streams, int) else streams

    async def stream(number: int) -> list[Spoken]:
        chance = random.Random(first_seed + number)  # the same lots in each run
        async with websockets.connect(url, additional_headers={"X-API-Key": key}, compression=None) as socket:
            await asyncio.sleep(chance.uniform(0, 1))
            return [
                await _turn(socket, first_seed + number * turns + turn, chance.choice(ways), chance, words)
                for turn in range(turns)
            ]

    found = await asyncio.gather(*(stream(number) for number in numbers))
    return [spoken for one in found for spoken in one]


def table(found: Sequence[Spoken]) -> list[str]:
    """A line for each way."""
    lines = []
    for way in WAYS:
        times = sorted(spoken.first * 1000 for spoken in found if spoken.way == way)
        if times:
            ready = sum(spoken.prepared for spoken in found if spoken.way == way)
            cells = "  ".join(f"p{p} {percentile(times, p):7.2f} ms" for p in (5, 50, 95))
            lines.append(f"prepare: {way:8} start to first token  {cells}  ({len(times)} turns, {ready} ready)")
    return lines


def _speak(url: str, key: str, numbers: range, turns: int, words: int, first_seed: int) -> list[Spoken]:
    return asyncio.run(speak(url, key, numbers, turns, words, first_seed=first_seed))


def measure(
    server: Server, streams: int, turns: int, words: int, first_seed: int = 0, processes: int = 1
) -> list[Spoken]:
    """Let them speak to a server, after a few turns that are not counted, and print the table.

    Each of the processes reads for some of the streams: listeners do not wait for one another.
    """
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:

        def everybody(streams: int, turns: int, seed: int) -> list[Spoken]:
            shares = [range(number, streams, processes) for number in range(min(processes, streams))]
            tasks = [pool.submit(_speak, server.url, server.api_key, own, turns, words, seed) for own in shares]
            return [spoken for task in tasks for spoken in task.result()]

        everybody(min(8, streams), 2, first_seed + 1_000_000)
        found = everybody(streams, turns, first_seed)
    for line in table(found):
        print(line, flush=True)
    return found
