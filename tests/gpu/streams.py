#!/usr/bin/env python3
"""The engine alone, our runtime over WebSocket, and vLLM's OpenAI server: the same work, one run, one machine.

    python3 tests/gpu/streams.py ARTIFACT [--streams 1 64 256] [--only vllm alone runtime openai] [--profile DIR]

`vllm` is the engine alone as vLLM ships it, `alone` the same with what the runtime adds to its workers.

Every stream has a persona of its own of about 450 tokens, which the engine has in its prefix cache as in a conversation
that goes on, and asks something new each time; replies are 150 tokens, sampled as our clients ask for. With `--cold` no
two prompts share anything, and prefill takes most of the GPU's time. The load comes from processes of its own.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import websockets

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import engine_alone
from tests.benchmarks.load import Target, run_load
from tests.benchmarks.work import Figures, Sample, figures
from tests.server import Server, free_port

WORDS, REPLY = 200, 150


def rounds_for(streams: int) -> int:
    """Turns each listener has: enough of them for steady figures, few enough to be done in seconds."""
    return 10 if streams < 8 else 4 if streams < 128 else 3


@dataclass(frozen=True)
class Plan:
    """Which turns a contender's streams have. Seeds are its own, so that contenders on one engine share no prompt."""

    contender: int
    cold: bool

    def seed(self, streams: int) -> int:
        """First seed of the measured turns."""
        return self.contender * 1_000_000 + streams * 10_000

    def persona(self, streams: int) -> int | None:
        """First persona; none where every turn has one of its own."""
        return None if self.cold else self.seed(streams) + 5_000


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def alone(folder: Path, limits: dict, streams: list[int], plan: Plan, *, as_vllm_ships: bool) -> dict[int, Figures]:
    """vLLM's AsyncLLM in this process."""
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
            for count in streams:
                rounds, seed, persona = rounds_for(count), plan.seed(count), plan.persona(count)
                if persona is not None:
                    warming = engine_alone.prompts(folder, count, 1, WORDS, seed - count, persona)
                    await engine_alone.measure(llm, warming, count, 1, 8)
                prompts = engine_alone.prompts(folder, count, rounds, WORDS, seed, persona)
                before = cpu_seconds(os.getpid())
                samples = await engine_alone.measure(llm, prompts, count, rounds, REPLY)
                used = cpu_seconds(os.getpid()) - before
                found[count] = figures(count, samples)
                print(found[count].line(name), f" CPU {used / found[count].tokens * 1e6:.1f} µs/token")
                print(f"    prompts of {len(prompts[0])} tokens", flush=True)
        finally:
            llm.shutdown()

    asyncio.run(main())
    return found


def profile(pid: int, out: Path, seconds: int = 12) -> subprocess.Popen[bytes]:
    """py-spy on a process; raw stacks to a file."""
    command = [sys.executable, "-m", "py_spy"]
    if subprocess.run([*command, "--version"], capture_output=True, check=False).returncode:
        command = ["py-spy"]
    return subprocess.Popen([*command, "record", "-p", str(pid), "-d", str(seconds), "-f", "raw", "-o", str(out)])


def hot_lines(raw: Path, most: int = 45) -> None:
    """Functions by their own samples, from py-spy's raw stacks."""
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
    """A ping's round trip after a silence as long as a prefill: what the socket and waking up cost any turn here."""
    times = asyncio.run(_round_trips(target, 100, silence))
    print(
        f"a ping's round trip after {silence * 1000:.0f} ms of silence: p50 {median(times) * 1000:.2f} ms", flush=True
    )


def warm(target: Target, count: int, processes: int, plan: Plan) -> None:
    """A turn of each stream that is not measured, unless the plan is a cold one."""
    if not plan.cold:
        run_load(target, count, 1, processes, plan.seed(count) - count, plan.persona(count))


def load(target: Target, count: int, processes: int, plan: Plan) -> list[Sample]:
    """The measured turns."""
    return run_load(target, count, rounds_for(count), processes, plan.seed(count), plan.persona(count))


def runtime(
    folder: Path, streams: list[int], processes: int, plan: Plan, profiles: Path | None, **env: str
) -> dict[int, Figures]:
    """Our server, sanitizer on."""
    found = {}
    variables = {
        "MAX_CONCURRENT_CONNECTIONS": "1100",
        "WS_MAX_MESSAGES_PER_WINDOW": "0",
        "CHAT_MAX_OUT": str(REPLY),
        "DEPLOY_MODE": "chat",
        "MAX_SESSIONS": "20000",
    }
    with Server(folder, **(variables | env)) as server:
        print(f"runtime: ready after {server.wait_ready(400):.0f} s", flush=True)
        assert server.process is not None
        target = Target("yap", server.url, server.api_key, words=WORDS, max_tokens=REPLY)
        run_load(target, 3, 1, 1, first_seed=1)
        socket_price(target)
        for count in streams:
            warm(target, count, processes, plan)
            before = cpu_seconds(server.process.pid)
            samples = load(target, count, processes, plan)
            used = cpu_seconds(server.process.pid) - before
            found[count] = figures(count, samples)
            frames = sum(sample.frames for sample in samples) / found[count].tokens
            print(
                found[count].line("runtime over WebSocket"),
                f" CPU {used / found[count].tokens * 1e6:.1f} µs/token, {frames:.2f} frames/token, "
                f"TTFT p50 in the server {median(sample.server_ttft for sample in samples) * 1000:.1f} ms",
                flush=True,
            )
        if profiles:
            raw = profiles / "runtime.raw"
            watch = profile(server.process.pid, raw)
            most = max(streams)
            run_load(target, most, 8, processes, plan.seed(most) + 100_000, plan.persona(most))
            watch.wait(60)
            hot_lines(raw)
            shutil.copy(server.log, profiles / "server.log")
        print(f"runtime exited {server.stop()}", flush=True)
    return found


def openai(folder: Path, limits: dict, streams: list[int], processes: int, plan: Plan) -> dict[int, Figures]:
    """vLLM's own server."""
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
        run_load(target, 3, 1, 1, first_seed=1)
        for count in streams:
            warm(target, count, processes, plan)
            samples = load(target, count, processes, plan)
            found[count] = figures(count, samples)
            print(found[count].line("vLLM's OpenAI server"), flush=True)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
        caches.cleanup()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--only", nargs="+", choices=["vllm", "alone", "runtime", "openai"])
    parser.add_argument("--cold", action="store_true", help="no two prompts share anything")
    parser.add_argument("--processes", type=int, default=8, help="processes that the load comes from")
    parser.add_argument("--profile", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    limits = json.loads((arguments.artifact / "build_metadata.json").read_text())["chat"]["limits"]
    wanted = arguments.only or ["vllm", "alone", "runtime", "openai"]
    results: dict[str, dict[int, Figures]] = {}
    folder, streams, processes = arguments.artifact, arguments.streams, arguments.processes
    for number, name in enumerate(wanted, 1):
        plan = Plan(number, arguments.cold)
        if name in ("vllm", "alone"):
            results[name] = alone(folder, limits, streams, plan, as_vllm_ships=name == "vllm")
        elif name == "runtime":
            results[name] = runtime(folder, streams, processes, plan, arguments.profile)
        else:
            results[name] = openai(folder, limits, streams, processes, plan)
    for count in arguments.streams:
        parts = []
        for name, other in (
            ("alone", "the engine alone"),
            ("vllm", "the engine as vLLM ships it"),
            ("openai", "vLLM's server"),
        ):
            if name in results and "runtime" in results:
                ours, theirs = results["runtime"][count], results[name][count]
                gap = (ours.ttft_p50 - theirs.ttft_p50) * 1000
                parts.append(f"{ours.tokens_per_s / theirs.tokens_per_s:.3f} × {other} (TTFT p50 {gap:+.1f} ms)")
        if parts:
            print(f"{count:4} streams: the runtime makes {', '.join(parts)}")
    if arguments.json:
        plain = {name: {str(count): asdict(f) for count, f in found.items()} for name, found in results.items()}
        arguments.json.write_text(json.dumps(plain, indent=2) + "\n")


if __name__ == "__main__":
    main()
