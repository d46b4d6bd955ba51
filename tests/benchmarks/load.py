"""A load of many listeners, in processes of their own so that the load is not what is measured."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import websockets

from tests.benchmarks.work import SAMPLING, Sample, turns, work

# Sockets that a process of listeners opens at once: more would wait for each other longer than a server lets them.
OPENING = 32


@dataclass(frozen=True)
class Listener:
    """One stream: the seeds and personas of its turns, and seconds of silence before all of them and after each."""

    number: int
    turns: list[tuple[int, int | None]]
    delay: float = 0.0
    pause: float = 0.0


@dataclass(frozen=True)
class Target:
    """The server to load, and what to send it.

    Attributes:
        kind: `yap` for our WebSocket, `openai` for a chat completions endpoint.
        url: its address.
        key: the API key; empty for none.
        model: the model's name, where the server wants one.
        words: length of the system prompt in words.
        max_tokens: length of a reply (over a WebSocket it is `CHAT_MAX_OUT`).
        bounded: whether a WebSocket's turns ask for `max_tokens` as well.
        ignore_eos: whether replies always have the full length.
        keyed: whether each stream names its session at the handshake, for a router.
        keys: the streams' names there; by default made from their numbers.
        urls: addresses that the streams take one after the other; by default all take `url`.
    """

    kind: str
    url: str
    key: str = ""
    model: str = ""
    words: int = 200
    max_tokens: int = 150
    bounded: bool = False
    ignore_eos: bool = False
    keyed: bool = False
    keys: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    def url_of(self, stream: int) -> str:
        """Return the address that a stream takes."""
        return self.urls[stream % len(self.urls)] if self.urls else self.url


async def _yap_stream(
    target: Target, own: Listener, opening: asyncio.Semaphore, ready: asyncio.Event, go: asyncio.Event
) -> list[Sample]:
    samples = []
    messages = []  # made ahead, so that a turn begins as soon as the last one ends
    sampling = {**SAMPLING, **({"max_tokens": target.max_tokens} if target.bounded else {})}
    for seed, persona in own.turns:
        item = work(seed, target.words, persona)
        message = {"type": "start", "session_id": f"load-{seed}", "chat_prompt": item.persona, "history": []}
        messages.append(json.dumps({**message, "user_utterance": item.utterance, "sampling": sampling}))
    session = target.keys[own.number] if target.keys else f"load-{own.number}"
    headers = {"X-API-Key": target.key} | ({"X-Session-Id": session} if target.keyed else {})
    async with AsyncExitStack() as stack:
        async with opening:
            socket = await stack.enter_async_context(
                websockets.connect(
                    target.url_of(own.number),
                    additional_headers=headers,
                    compression=None,
                    max_size=2**22,
                    open_timeout=60,
                )
            )
        ready.set()
        await go.wait()
        await asyncio.sleep(own.delay)
        for message in messages:
            started = time.perf_counter()
            await socket.send(message)
            first, frames = 0.0, 0
            while True:
                frame = await socket.recv(decode=False)
                if frame.startswith(b'{"type":"token"'):
                    frames += 1
                    if not first:
                        first = time.perf_counter()
                elif frame.startswith(b'{"type":"done"'):
                    break
                elif frame.startswith(b'{"type":"error"'):
                    raise RuntimeError(frame.decode())
            ended = time.perf_counter()
            usage = json.loads(frame)["usage"]
            tokens = usage["completion_tokens"]
            server_ttft = (usage["ttft_ms"] or 0.0) / 1000  # none where nothing was said
            samples.append(Sample(started, first or ended, ended, tokens, frames, server_ttft, own.number))
            if own.pause:
                await asyncio.sleep(own.pause)
    return samples


async def _openai_stream(
    target: Target, own: Listener, opening: asyncio.Semaphore, ready: asyncio.Event, go: asyncio.Event
) -> list[Sample]:
    address = urlsplit(target.url_of(own.number))
    samples = []
    bodies = []
    for seed, persona in own.turns:
        item = work(seed, target.words, persona)
        request = {
            "model": target.model,
            "messages": [
                {"role": "system", "content": item.persona},
                {"role": "user", "content": item.utterance},
            ],
            "max_tokens": target.max_tokens,
            "ignore_eos": target.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
            **SAMPLING,
        }
        bodies.append(json.dumps(request).encode())
    # One connection for all turns: OpenAI's clients keep theirs.
    async with opening:
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**20)
    ready.set()
    await go.wait()
    await asyncio.sleep(own.delay)
    for body in bodies:
        started = time.perf_counter()
        if reader.at_eof():  # a server may close what is idle
            writer.close()
            reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**20)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {target.key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        first, tokens, frames, ended = 0.0, 0, 0, started
        while True:
            line = await reader.readline()
            if not line or line == b"0\r\n":  # the last chunk
                await reader.readline()
                break
            if not line.startswith(b"data: {"):
                continue
            frames += 1
            if not first and b'"content":"' in line and b'"content":""' not in line:
                first = time.perf_counter()
            if b'"usage":{' in line:
                tokens = json.loads(line[6:])["usage"]["completion_tokens"]
            ended = time.perf_counter()
        samples.append(Sample(started, first or ended, ended, tokens, frames, stream=own.number))
        if own.pause:
            await asyncio.sleep(own.pause)
    writer.close()
    return samples


STREAMS = {"yap": _yap_stream, "openai": _openai_stream}


def siblings(cpu: int) -> frozenset[int]:
    """Return the CPUs that are threads of the same core, this one among them, as Linux tells."""
    listed = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    if not listed.exists():
        return frozenset({cpu})
    spans = [span.split("-") for span in listed.read_text().strip().split(",")]
    return frozenset(number for span in spans for number in range(int(span[0]), int(span[-1]) + 1))


def split_cpus(
    cpus: set[int], most: int | None = None, core_of: Callable[[int], frozenset[int]] = siblings
) -> tuple[set[int], set[int]]:
    """Split CPUs into those for a server and at most `most` for the load alone, in whole cores.

    On one machine a load takes time from what it measures, also as the other thread of a core; real listeners have
    machines of their own. By default a quarter is theirs, and none where there are fewer than 8.
    """
    default = len(cpus) // 4 if len(cpus) >= 8 else 0
    wanted = default if most is None else min(most, len(cpus) - 1)
    listening: set[int] = set()
    for cpu in sorted(cpus, reverse=True):
        core = core_of(cpu) & cpus
        if cpu not in listening and len(listening | core) <= wanted:
            listening |= core
    return cpus - listening, listening


async def _stay_awake() -> None:
    """Never let this process wait: a processor that has to wake up reads late what has arrived."""
    while True:  # noqa: ASYNC110 - an event would be waited for
        await asyncio.sleep(0)


def _worker(target: Target, share: list[Listener], cpus: set[int], awake: bool, barrier: Any, results: Any) -> None:
    if cpus:
        os.sched_setaffinity(0, cpus)

    async def main() -> list[Sample]:
        go = asyncio.Event()
        opening = asyncio.Semaphore(OPENING)
        ready = [asyncio.Event() for _ in share]
        tasks = [
            asyncio.create_task(STREAMS[target.kind](target, own, opening, event, go))
            for own, event in zip(share, ready, strict=True)
        ]
        waiting = asyncio.gather(*(event.wait() for event in ready))
        await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.get_running_loop().run_in_executor(None, barrier.wait, 120)
        staying = asyncio.create_task(_stay_awake()) if awake else None
        go.set()
        samples = await asyncio.gather(*tasks)
        if staying is not None:
            staying.cancel()
        return [sample for own in samples for sample in own]

    try:
        results.put(asyncio.run(main()))
    except Exception as error:
        barrier.abort()
        results.put(f"{type(error).__name__}: {error}")
        raise


def run_load(
    target: Target,
    streams: int,
    rounds: int,
    processes: int,
    first_seed: int = 1,
    first_persona: int | None = None,
    spread: float = 0.0,
    cpus: Sequence[int] = (),
    pause: float = 0.0,
) -> list[Sample]:
    """Let `streams` listeners each have `rounds` turns, and return their samples.

    They all start together, or evenly within `spread` seconds, and ask again `pause` seconds after a reply has ended.

    With `first_persona` a listener keeps its persona for all its turns, and so do later loads with the same one: the
    engine finds it in its prefix cache. Without, no two turns share a prefix. `cpus` are those that the listeners have
    for themselves, by default none. Where there is one for each process, none of them sleeps, so that how long a
    listener takes to wake up is not measured.

    Raises:
        RuntimeError: any listener failed.
    """
    context = multiprocessing.get_context("spawn")
    processes = min(processes, streams)
    shares: list[list[Listener]] = [[] for _ in range(processes)]
    for stream, own in enumerate(turns(streams, rounds, first_seed, first_persona)):
        shares[stream % processes].append(Listener(stream, own, spread * stream / streams, pause))
    barrier, results = context.Barrier(processes), context.Queue()
    awake = processes <= len(cpus)
    workers = [
        context.Process(target=_worker, args=(target, share, set(cpus), awake, barrier, results)) for share in shares
    ]
    for worker in workers:
        worker.start()
    try:
        answers = _answers(workers, results)
        for worker in workers:
            worker.join(30)
    finally:
        for worker in workers:
            worker.kill()
    return [sample for answer in answers for sample in answer]


def _answers(workers: Sequence[BaseProcess], results: Any) -> list[list[Sample]]:
    """Return what every process has measured; raises as soon as one failed or ended without an answer."""
    answers: list[list[Sample]] = []
    while len(answers) < len(workers):
        try:
            answer = results.get(timeout=1)
        except queue.Empty:
            status = next((worker.exitcode for worker in workers if worker.exitcode), None)
            if status is None:
                continue
            answer = f"a process of listeners exited with {status}"
        if isinstance(answer, str):
            raise RuntimeError(f"the load failed: {answer}")
        answers.append(answer)
    return answers
