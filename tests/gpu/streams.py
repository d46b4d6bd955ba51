#!/usr/bin/env python3
"""Compares the engine alone, our runtime and vLLM's OpenAI server: the same work, one run, one machine.

    python3 tests/gpu/streams.py ARTIFACT [ARTIFACT …] [--streams 1 64 256] [--only vllm alone runtime http openai]
        [--profile DIR]

Engines and vLLM's server take the first artifact; the runtime is measured with each, such as those that the same model
gives with options tuned for latency and for throughput. `vllm` is the engine alone as vLLM ships it, `alone` the same
with what the runtime adds to its workers. `runtime` is met over its WebSocket, `http` is the same server over HTTP, as
`openai`, vLLM's own, is.

Every stream has a persona of its own of about 450 tokens, which the engine has in its prefix cache as in a conversation
that goes on, and asks something new each time; replies are 150 tokens, sampled as our clients ask for. With `--cold` no
two prompts share anything, and prefill takes most of the GPU's time. The load comes from processes of its own, and
where there are 8 CPUs or more, from CPUs that no contender uses.

Every number of streams is measured twice. One stream: the next turn begins when the last one has ended, while all that
takes part in it is still awake; `with pauses`, half a second later, as after an answer that somebody has listened to.
More streams: `spread`, they begin one after another within a reply's time, and what counts is the time in which all of
them speak; so it is where people talk. `together`, all begin at the same moment, end at the same moment, and begin
again; nothing is harder for what stands between the socket and the engine. With `--bursts` also with replies of two
tokens: how soon all that came in one moment are in the engine.
`--profile` adds a pass under py-spy and prints where the server's time goes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median

import websockets

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import engine_alone
from tests.benchmarks.load import Target, run_load, split_cpus
from tests.benchmarks.work import Figures, Sample, figures
from tests.harness.server import STEADY, Server, free_port

WORDS, REPLY = 200, 150
# The runtime's ways in, as they are called in results.
DOORS = {"runtime": "the runtime", "http": "its door for OpenAI's clients"}
PAUSE = 0.5  # seconds that one listener is silent between turns


@dataclass(frozen=True)
class Load:
    """One measurement.

    Attributes:
        streams: how many.
        together: whether all begin at the same moment.
        pause: seconds between a stream's turns.
        reply: tokens of a reply.
    """

    streams: int
    together: bool
    pause: float = 0.0
    reply: int = REPLY

    @property
    def name(self) -> str:
        """The load's name in results."""
        if self.streams == 1:
            return "1 with pauses" if self.pause else "1"
        if self.reply < REPLY:
            return f"{self.streams} burst"
        return f"{self.streams} {'together' if self.together else 'spread'}"

    @property
    def rounds(self) -> int:
        """The number of turns of each listener: enough for steady figures, few enough to be done in seconds."""
        if self.streams < 8:
            return 30
        if self.reply < REPLY:
            return 8
        return (4 if self.streams < 128 else 3) + (0 if self.together else 2)

    @property
    def spread(self) -> float:
        """The seconds within which the streams begin: about as long as a reply takes."""
        return 0.0 if self.together else 1.3 if self.streams < 128 else 2.5

    def figures(self, samples: list[Sample]) -> Figures:
        """Compute the figures of the measured turns."""
        return figures(self.streams, samples, steady=not self.together)


def loads(streams: list[int], bursts: bool = False) -> list[Load]:
    """Return all measurements, in their order."""
    found = []
    for count in streams:
        found += [Load(1, True), Load(1, True, PAUSE)] if count == 1 else [Load(count, False), Load(count, True)]
        if bursts and count > 1:
            found.append(Load(count, True, reply=2))
    return found


@dataclass(frozen=True)
class Plan:
    """The turns of a contender's streams; seeds are its own, so that contenders on one engine share no prompt."""

    contender: int
    cold: bool

    def seed(self, load: Load) -> int:
        """Return the first seed of the measured turns."""
        kind = 2_500 if load.pause else 15_000 if load.reply < REPLY else 10_000 if load.together else 0
        return self.contender * 10_000_000 + load.streams * 20_000 + kind

    def persona(self, load: Load) -> int | None:
        """Return the first persona; none where every turn has one of its own."""
        return None if self.cold else self.seed(load) + 4_000


@dataclass(frozen=True)
class LoadGenerator:
    """The processes that the load comes from, and the CPUs that they may use."""

    processes: int
    cpus: tuple[int, ...]

    def run(
        self,
        target: Target,
        streams: int,
        rounds: int,
        seed: int,
        persona: int | None = None,
        spread: float = 0.0,
        pause: float = 0.0,
    ) -> list[Sample]:
        """Let `streams` listeners have `rounds` turns each (`run_load`)."""
        return run_load(target, streams, rounds, self.processes, seed, persona, spread, self.cpus, pause)


def cpu_seconds(pid: int) -> float:
    """Return the user and system time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def alone(folder: Path, limits: dict, wanted: list[Load], plan: Plan, *, as_vllm_ships: bool) -> dict[str, Figures]:
    """Measure vLLM's AsyncLLM in this process."""
    found = {}
    name = "engine as vLLM ships it" if as_vllm_ships else "engine alone"
    options = {"max_model_len": limits["max_model_len"], "max_num_seqs": limits["max_batch_size"]}

    async def main() -> None:
        began = time.monotonic()
        llm = engine_alone.start(folder, as_vllm_ships=as_vllm_ships, **options)
        # A batch, so that nothing is compiled while time is taken.
        await engine_alone.measure(llm, engine_alone.prompts(folder, 32, 1, WORDS, 1), 32, 1, 8)
        print(f"{name}: ready after {time.monotonic() - began:.0f} s", flush=True)
        try:
            for load in wanted:
                count, rounds, seed, persona = load.streams, load.rounds, plan.seed(load), plan.persona(load)
                if persona is not None:
                    warming = engine_alone.prompts(folder, count, 1, WORDS, seed - count, persona)
                    await engine_alone.measure(llm, warming, count, 1, 8)
                prompts = engine_alone.prompts(folder, count, rounds, WORDS, seed, persona)
                before = cpu_seconds(os.getpid())
                samples = await engine_alone.measure(llm, prompts, count, rounds, load.reply, load.spread, load.pause)
                used = cpu_seconds(os.getpid()) - before
                found[load.name] = load.figures(samples)
                print_figures(
                    name, load, found[load.name], samples, f"prompts of {len(prompts[0])} tokens, {cpu(used, samples)}"
                )
        finally:
            llm.shutdown()

    asyncio.run(main())
    return found


def cpu(used: float, samples: list[Sample]) -> str:
    """Word a process's CPU time per token."""
    return f"CPU {used / sum(sample.tokens for sample in samples) * 1e6:.1f} µs/token"


def print_figures(name: str, load: Load, found: Figures, samples: list[Sample], more: str = "") -> None:
    """Print one measurement; for one stream its times to first token too, since a median hides scatter."""
    print(f"{found.line(f'{name}, {load.name}')}  {more}", flush=True)
    if load.streams == 1:
        print("  TTFT, ms:", *(f"{sample.ttft * 1000:.1f}" for sample in sorted(samples, key=lambda s: s.started)))


def profile(pid: int, out: Path, seconds: int = 12) -> subprocess.Popen[bytes]:
    """Start py-spy on a process, writing raw stacks to a file."""
    program = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    command = [program or "py-spy", "record", "-p", str(pid), "-d", str(seconds), "-f", "raw", "-o", str(out)]
    return subprocess.Popen(command)


def hot_lines(raw: Path, most: int = 45) -> None:
    """Print the functions with most samples of their own, from py-spy's raw stacks."""
    own: dict[str, int] = {}
    total = 0
    for line in raw.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        own[stack.rpartition(";")[2]] = own.get(stack.rpartition(";")[2], 0) + int(count)
        total += int(count)
    for frame, count in sorted(own.items(), key=lambda item: -item[1])[:most]:
        print(f"  {count / max(total, 1):6.1%}  {frame}")


async def _round_trips(target: Target, count: int, silence: float) -> list[float]:
    times = []
    headers = {"X-API-Key": target.key}
    async with websockets.connect(target.url, additional_headers=headers, compression=None) as socket:
        for _ in range(count):
            await asyncio.sleep(silence)
            began = time.perf_counter()
            await socket.send('{"type":"ping"}')
            await socket.recv(decode=False)
            times.append(time.perf_counter() - began)
    return times


def socket_price(target: Target, silence: float = 0.02) -> None:
    """Print a ping's round trip after a silence as long as a prefill: the socket's and the wake-up's cost."""
    times = asyncio.run(_round_trips(target, 100, silence))
    print(
        f"a ping's round trip after {silence * 1000:.0f} ms of silence: p50 {median(times) * 1000:.2f} ms", flush=True
    )


def warm(target: Target, load: Load, generator: LoadGenerator, plan: Plan) -> None:
    """Run a turn of each stream that is not measured, unless the plan is a cold one."""
    target = asked(target, load)
    if not plan.cold:
        generator.run(target, load.streams, 1, plan.seed(load) - load.streams, plan.persona(load))


def asked(target: Target, load: Load) -> Target:
    """Return the server with what a load asks it for."""
    return replace(target, max_tokens=load.reply, bounded=load.reply < REPLY)


def measure(target: Target, load: Load, generator: LoadGenerator, plan: Plan) -> list[Sample]:
    """Run the measured turns."""
    return generator.run(
        asked(target, load),
        load.streams,
        load.rounds,
        plan.seed(load),
        plan.persona(load),
        load.spread,
        load.pause,
    )


def runtime(
    folder: Path,
    wanted: list[Load],
    generator: LoadGenerator,
    plan: Plan,
    profiles: Path | None,
    name: str,
    title: str,
) -> dict[str, Figures]:
    """Measure our server: `runtime` over the WebSocket with the sanitizer on, `http` as OpenAI's clients meet it."""
    found = {}
    variables = {
        **STEADY,
        "MAX_CONCURRENT_CONNECTIONS": "1100",
        "WS_MAX_MESSAGES_PER_WINDOW": "0",
        "CHAT_MAX_OUT": str(REPLY),
        "DEPLOY_MODE": "chat",
        "MAX_SESSIONS": "20000",
        "SERVED_MODEL_NAMES": "chat",
    }
    with Server(folder, **variables) as server:
        print(f"{title}: ready after {server.wait_ready(400):.0f} s", flush=True)
        assert server.process is not None
        door, url = ("openai", server.http) if name == "http" else ("yap", server.url)
        target = Target(door, url, server.api_key, model="chat", words=WORDS, max_tokens=REPLY)
        generator.run(target, 3, 1, 1)
        if door == "yap":
            socket_price(target)
        for load in wanted:
            warm(target, load, generator, plan)
            before = cpu_seconds(server.process.pid)
            samples = measure(target, load, generator, plan)
            used = cpu_seconds(server.process.pid) - before
            found[load.name] = load.figures(samples)
            frames = sum(sample.frames for sample in samples) / sum(sample.tokens for sample in samples)
            inside = median(sample.server_ttft for sample in samples) * 1000
            more = f"{cpu(used, samples)}, {frames:.2f} frames/token"
            more += f", TTFT p50 in the server {inside:.1f} ms" if door == "yap" else ""
            print_figures(title, load, found[load.name], samples, more)
        if profiles:
            raw = profiles / f"{title}.raw"
            watch = profile(server.process.pid, raw)
            most = next(load for load in reversed(wanted) if load.reply == REPLY)
            generator.run(target, most.streams, 8, plan.seed(most) + 4_000_000, plan.persona(most))
            watch.wait(60)
            hot_lines(raw)
            shutil.copy(server.log, profiles / "server.log")
        print(f"{title} exited {server.stop()}", flush=True)
    return found


def openai(folder: Path, limits: dict, wanted: list[Load], generator: LoadGenerator, plan: Plan) -> dict[str, Figures]:
    """Measure vLLM's own OpenAI server."""
    port = free_port()
    command = [
        *[sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)],
        *["--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(limits["max_model_len"])],
        *["--max-num-seqs", str(limits["max_batch_size"]), "--served-model-name", "chat"],
        *["--no-enable-log-requests", "--disable-log-stats", "--uvicorn-log-level", "warning"],
    ]
    found = {}
    began = time.monotonic()
    caches = tempfile.TemporaryDirectory(prefix="yap-openai-")  # empty: this start is a cold one
    environment = os.environ | {"VLLM_CACHE_ROOT": caches.name, "TRITON_CACHE_DIR": f"{caches.name}/triton"}
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                if server.poll() is not None or time.monotonic() - began > 400:
                    raise RuntimeError("vLLM's server did not start") from None
                time.sleep(0.2)
        print(f"vLLM's OpenAI server, no compile cache: ready after {time.monotonic() - began:.0f} s", flush=True)
        target = Target("openai", f"http://127.0.0.1:{port}", model="chat", words=WORDS, max_tokens=REPLY)
        generator.run(target, 3, 1, 1)
        for load in wanted:
            warm(target, load, generator, plan)
            samples = measure(target, load, generator, plan)
            found[load.name] = load.figures(samples)
            print_figures("vLLM's server", load, found[load.name], samples)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
        caches.cleanup()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--only", nargs="+", choices=["vllm", "alone", "runtime", "http", "openai"])
    parser.add_argument("--bursts", action="store_true", help="replies of two tokens too")
    parser.add_argument("--cold", action="store_true", help="no two prompts share anything")
    parser.add_argument("--processes", type=int, default=8, help="processes that the load comes from")
    parser.add_argument("--listeners-cpus", type=int, metavar="N", help="CPUs for the load alone; default: a quarter")
    parser.add_argument("--profile", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started here is ended here
    folder, *others = arguments.artifacts
    limits = json.loads((folder / "build_metadata.json").read_text())["chat"]["limits"]
    contenders = arguments.only or ["vllm", "alone", "runtime", "http", "openai"]
    results: dict[str, dict[str, Figures]] = {}
    wanted = loads(arguments.streams, arguments.bursts)
    serving, listening = split_cpus(os.sched_getaffinity(0), arguments.listeners_cpus)
    os.sched_setaffinity(0, serving)  # every contender inherits it
    generator = LoadGenerator(arguments.processes, tuple(sorted(listening)))
    load_cpus = sorted(listening) or "none of its own"
    print(f"CPUs: {sorted(serving)} for each contender; for the load: {load_cpus}", flush=True)
    met = [(name, where) for name in contenders for where in ([folder, *others] if name in DOORS else [folder])]
    for number, (name, where) in enumerate(met, 1):
        plan = Plan(number, arguments.cold)
        if name in ("vllm", "alone"):
            results[name] = alone(folder, limits, wanted, plan, as_vllm_ships=name == "vllm")
        elif name in DOORS:
            title = name if where == folder else f"{name} of {where.name}"
            results[title] = runtime(where, wanted, generator, plan, arguments.profile, name, title)
        else:
            results[name] = openai(folder, limits, wanted, generator, plan)
    for load, title in product(wanted, results):
        door = title.split()[0]
        if door not in DOORS:
            continue
        parts = []
        for name, other in (
            ("alone", "the engine alone"),
            ("vllm", "the engine as vLLM ships it"),
            ("openai", "vLLM's server"),
        ):
            if name in results:
                ours, theirs = results[title][load.name], results[name][load.name]
                speed, first = ours.tokens_per_s / theirs.tokens_per_s, ours.ttft_p50 / theirs.ttft_p50
                gap = (ours.ttft_p50 - theirs.ttft_p50) * 1000
                parts.append(f"{speed:.3f} × {other} (TTFT p50 {gap:+.1f} ms, {first:.3f} ×)")
        if parts:
            which = title.replace(door, DOORS[door], 1)
            print(f"streams {load.name}: {which} makes {', '.join(parts)}")
    if arguments.json:
        plain = {name: {load: asdict(f) for load, f in found.items()} for name, found in results.items()}
        arguments.json.write_text(json.dumps(plain, indent=2) + "\n")


if __name__ == "__main__":
    main()
