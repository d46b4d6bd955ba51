#!/usr/bin/env python3
"""Measures a model that several GPUs share against the same model on one: start, first token, tokens, and a lost GPU.

    python3 tests/gpu/tensor_parallel.py MODEL [--parallel 2] [--streams 1 64 256] [--steps STEP …]

MODEL is a folder with a model, such as `inputs/make_model.py` writes, or an artifact; nothing is written to it. In
MODEL-parallel beside it, an artifact for one GPU and one for `--parallel` are made of links to its weights, each
compiled ahead. Each step is a process group of its own with a time limit, and logs to MODEL-parallel/logs; a result is
printed as soon as it is known, and kept: run again, what was measured is not measured again. So the run may be cut
anywhere.

    compile-1 compile-N   compile ahead and seal
    ready-1 ready-N       from exec to readiness, with the artifact's compile cache
    streams-1 streams-N   the runtime, as streams.py measures it
    death-N               a rank is killed in mid-turn: until the turn ends, until the server does, and what is left
    without-N             readiness without a compile cache

As in the images, no `nvcc` is found: where vLLM finds one, it compiles other kernels at start, which no cache here has.
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
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[2] / "client")]

from runtime.artifact.metadata import METADATA_NAME
from runtime.host import machine
from tests.benchmarks.load import split_cpus
from tests.benchmarks.work import work
from tests.client import Options, TurnRecord, connect
from tests.gpu import cold_start, streams
from tests.harness.server import Server, descendants
from yap_client import Token, YapError

# How much longer a start on several GPUs may take than on one.
MOST_START = 1.3
# Limits for each step in seconds: several times what it takes.
LIMITS = {"compile": 420, "ready": 300, "streams": 400, "death": 300, "without": 400}
# Of a model's folder, what makes it an artifact.
ADDED = ("compile_cache", "tool", METADATA_NAME)
# GPU memory that is left in use when a step's processes are gone.
IDLE_BYTES = 2**31


def steps(parallel: int) -> list[str]:
    """Return all steps, in their order."""
    pairs = [f"{name}-{count}" for name in ("compile", "ready", "streams") for count in (1, parallel)]
    return [*pairs, f"death-{parallel}", f"without-{parallel}"]


def visible(count: int, work: Path) -> dict[str, str]:
    """Return the variables that show the first `count` of the GPUs here, and no compiler for them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = [name for name in named if name] or [str(number) for number in range(count)]
    folders = [without_nvcc(Path(folder), work) for folder in os.environ["PATH"].split(os.pathsep)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[:count]), "PATH": os.pathsep.join(map(str, folders))}


def without_nvcc(folder: Path, work: Path) -> Path:
    """Return a folder of programs, or one of links to all of them but `nvcc` where that is among them."""
    if not (folder / "nvcc").exists():
        return folder
    links = work / f"path{str(folder).replace('/', '-')}"
    if not links.exists():
        links.mkdir(parents=True)
        for program in folder.iterdir():
            if program.name != "nvcc":
                (links / program.name).symlink_to(program)
    return links


def lay_out(model: Path, to: Path) -> None:
    """Fill a folder with links to a model's files, or with copies where there can be no links."""
    to.mkdir(parents=True)
    for path in sorted(model.iterdir()):
        if path.name in ADDED or not path.is_file():
            continue
        try:
            os.link(path.resolve(), to / path.name)
        except OSError:
            shutil.copyfile(path, to / path.name)


def compile_step(model: Path, folder: Path, count: int) -> dict[str, object]:
    """Make an artifact for so many GPUs, and tell what its compile cache holds for each rank."""
    shutil.rmtree(folder, ignore_errors=True)
    lay_out(model, folder)
    began = time.monotonic()
    command = [sys.executable, str(Path(__file__).with_name("inputs") / "make_artifact.py"), str(folder)]
    subprocess.run([*command, "--parallel", str(count)], check=True)
    seconds = time.monotonic() - began
    cache = [path for path in (folder / "compile_cache").rglob("*") if path.is_file()]
    ranks = Counter(part for path in cache for part in path.parts if part.startswith("rank_"))
    held = ", ".join(f"{name}: {number} files" for name, number in sorted(ranks.items())) or "no rank's"
    size = sum(path.stat().st_size for path in cache)
    print(f"compile cache: {len(cache)} files, {size / 2**20:.0f} MiB; {held}", flush=True)
    return {"seconds": seconds, "ranks": dict(ranks), "bytes": size}


def ready_step(folder: Path, *, cached: bool) -> dict[str, object]:
    """Measure from `exec` to readiness; the operating system has the weights in its file cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    with tempfile.TemporaryDirectory() as empty:
        env = {} if cached else {"VLLM_CACHE_ROOT": empty, "TRITON_CACHE_DIR": f"{empty}/triton"}
        seconds = cold_start.ours(folder, DEPLOY_MODE="chat", **env)
    print(f"ready after {seconds:.1f} s", flush=True)
    return {"seconds": seconds}


def streams_step(folder: Path, count: int, wanted: list[streams.Load]) -> dict[str, object]:
    """Measure the runtime as `streams.py` does."""
    serving, listening = split_cpus(os.sched_getaffinity(0))
    os.sched_setaffinity(0, serving)
    generator = streams.LoadGenerator(8, tuple(sorted(listening)))
    plan = streams.Plan(count, cold=False)
    found = streams.runtime(folder, wanted, generator, plan, None, "runtime", "yap")
    return {name: asdict(figures) for name, figures in found.items()}


def death_step(folder: Path) -> dict[str, object]:
    """Kill one rank while a turn runs, and measure what a listener and a supervisor notice."""

    async def cut(server: Server, victim: int) -> tuple[float, str]:
        async with connect(Options(url=server.url, api_key=server.api_key, recv_timeout=120)) as talk:
            item = work(60_000_000, 200)
            turn = TurnRecord(talk.say(item.utterance, persona=item.persona, sampling={"max_tokens": 150}))
            killed = 0.0
            try:
                async for event in turn:
                    if isinstance(event, Token) and not killed:
                        killed = time.monotonic()
                        os.kill(victim, signal.SIGKILL)
            except YapError as error:
                return time.monotonic() - killed, str(error)
            return time.monotonic() - killed, turn.problem or "the turn had ended before"

    with Server(folder, DEPLOY_MODE="chat") as server:
        print(f"ready after {server.wait_ready(300):.1f} s", flush=True)
        assert server.process is not None
        processes = descendants(server.process.pid)
        ranks = [pid for pid, name in processes.items() if "Worker" in name]
        print("processes:", ", ".join(f"{name} ({pid})" for pid, name in processes.items()), flush=True)
        turn_s, told = asyncio.run(cut(server, ranks[-1]))
        print(f"turn over {turn_s:.2f} s after a rank was killed: {told}", flush=True)
        began = time.monotonic()
        status: int | None = None
        with suppress(subprocess.TimeoutExpired):
            status = server.process.wait(60)
        exit_s = turn_s + time.monotonic() - began
        until = time.monotonic() + 10
        while (left := [pid for pid in processes if Path(f"/proc/{pid}").exists()]) and time.monotonic() < until:
            time.sleep(0.2)
        print(f"server exited {status} after {exit_s:.2f} s; 10 s later left: {left or 'none'}", flush=True)
        print(server.log_tail(8), file=sys.stderr)
    return {"turn_s": turn_s, "exit_s": exit_s, "status": status, "left": len(left), "told": told}


def one_step(step: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Do one step, in this process."""
    name, _, count = step.partition("-")
    folder = arguments.work / count
    if name == "compile":
        return compile_step(arguments.model, folder, int(count))
    if name == "streams":
        return streams_step(folder, int(count), streams.loads(arguments.streams))
    if name == "death":
        return death_step(folder)
    return ready_step(folder, cached=name == "ready")


def run(step: str, arguments: argparse.Namespace) -> str:
    """Run one step in a process group of its own, and say how it ended."""
    limit = LIMITS[step.partition("-")[0]]
    command = [sys.executable, __file__, *sys.argv[1:], "--inside", step]
    environment = os.environ | visible(int(step.rpartition("-")[2]), arguments.work) | {"PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with (arguments.logs / f"{step}.log").open("wb") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True)
        ended = ""
        try:
            asyncio.run(_copy(child, log, step, limit))
            status = child.wait(30)
        except (asyncio.TimeoutError, subprocess.TimeoutExpired):
            status, ended = -1, f"not within {limit} s"
        finally:
            _end(child)
    return ended or f"{'done' if status == 0 else f'status {status}'} after {time.monotonic() - began:.0f} s"


async def _copy(child: subprocess.Popen[bytes], log: object, step: str, limit: float) -> None:
    """Copy a step's output to its log and to ours, as it comes."""
    assert child.stdout is not None
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), child.stdout)

    async def copy() -> None:
        while line := await reader.readline():
            os.write(log.fileno(), line)
            print(f"[{step}] {line.decode(errors='replace').rstrip()}", flush=True)

    copying, until = asyncio.ensure_future(copy()), time.monotonic() + limit
    while not copying.done() and child.poll() is None:
        if time.monotonic() > until:
            copying.cancel()
            raise asyncio.TimeoutError
        await asyncio.wait((copying,), timeout=0.5)
    # What a process that outlived it holds open is not waited for.
    await asyncio.wait((copying,), timeout=5)
    copying.cancel()


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a step's whole process group, and wait until the GPUs' memory is free."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                child.wait(10)
    until = time.monotonic() + 30
    while time.monotonic() < until and any(
        gpu.memory_bytes - gpu.free_bytes > IDLE_BYTES for gpu in machine.describe().gpus
    ):
        time.sleep(0.5)


def compare(results: dict[str, dict], parallel: int, told: set[str]) -> None:
    """Print each comparison once, as soon as both of its sides are known."""
    one, many = results.get("ready-1"), results.get(f"ready-{parallel}")
    if one and many and "ready" not in told:
        told.add("ready")
        ratio = many["seconds"] / one["seconds"]
        verdict = "within" if ratio <= MOST_START else "beyond"
        print(
            f"== ready: {many['seconds']:.1f} s on {parallel} GPUs, {one['seconds']:.1f} s on one: {ratio:.2f} ×, "
            f"{verdict} {MOST_START} ×",
            flush=True,
        )
    one, many = results.get("streams-1"), results.get(f"streams-{parallel}")
    if one and many and "streams" not in told:
        told.add("streams")
        for load in many:
            if load in one:
                sides = f"{parallel} GPUs {_words(many[load])}; one {_words(one[load])}"
                print(f"== {load}: {sides}", flush=True)


def _words(figures: dict[str, float]) -> str:
    ttft, itl = figures["ttft_p50"] * 1e3, figures["itl_p50"] * 1e3
    return f"{figures['tokens_per_s']:.0f} tok/s, TTFT {ttft:.1f} ms, ITL {itl:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--parallel", type=int, default=2, metavar="GPUS")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="default: all")
    parser.add_argument("--work", type=Path, help="default: MODEL-parallel, beside it")
    parser.add_argument("--logs", type=Path, help="default: WORK/logs")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.model = arguments.model.resolve()
    arguments.work = (arguments.work or arguments.model.with_name(f"{arguments.model.name}-parallel")).resolve()
    arguments.logs = (arguments.logs or arguments.work / "logs").resolve()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    if arguments.inside:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started here is ended here
        found = one_step(arguments.inside, arguments)
        (arguments.logs / f"{arguments.inside}.json").write_text(json.dumps(found, indent=1) + "\n")
        return
    known = steps(arguments.parallel)
    wanted = arguments.steps or known
    if strange := set(wanted) - set(known):
        parser.error(f"--steps: expected some of {' '.join(known)}, found {' '.join(sorted(strange))}")
    with (arguments.logs / "machine.log").open("wb") as log:
        for command in (["nvidia-smi"], ["nvidia-smi", "topo", "-m"], ["lscpu"]):
            with suppress(OSError):
                subprocess.run(command, stdout=log, stderr=log, timeout=60, check=False)
    nvcc = shutil.which("nvcc", path=visible(1, arguments.work)["PATH"])
    print(f"nvcc: {nvcc or 'not found, as in the images'}", flush=True)
    results: dict[str, dict] = {}
    told: set[str] = set()
    failed = []
    for step in known:
        kept = arguments.logs / f"{step}.json"
        if step in wanted and not kept.exists():
            print(f"== {step}", flush=True)
            ended = run(step, arguments)
            print(f"== {step}: {ended}", flush=True)
            if not kept.exists():
                failed.append(step)
        if kept.exists():
            results[step] = json.loads(kept.read_text())
        compare(results, arguments.parallel, told)
    (arguments.logs / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"== over; logs in {arguments.logs}; failed: {' '.join(failed) or 'nothing'}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
