#!/usr/bin/env python3
"""Measures from `exec` to readiness: our runtime with its compile cache and without, and vLLM's server.

    python3 tests/gpu/cold_start.py ARTIFACT [--only with both without vllm ways] [--rounds 2] [--ways "all graphs" …]

`both` is the chat model and the classifier, if there is one, with the compile cache; the others are the chat model
alone. Each contender starts with an empty vLLM cache of its own; the operating system's file cache is warm for all of
them. What the server and vLLM say about their time is printed too.

`ways` fills one cache by the artifact's and a start, and then starts by it in turns: as it is, with the memory measured
at every start, with all graphs before readiness, or with vLLM's processes spawned, each phase beside the others';
`--ways` picks.

`--profile FILE` has py-spy (root, on the path) look at all processes of a start with the chat model, and writes what
each thread did when, as a trace that Chromium's `about:tracing` shows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.build.layout import COMPILE_CACHE
from runtime.engines.vllm.caches import copy_caches
from tests.harness.server import STEADY, Server, free_port

# What a start is held against, by the variables that take it away.
WAYS = {
    "as it is": {},
    "measured": {"VLLM_ENABLE_STARTUP_PLAN": "0"},
    "all graphs": STEADY,
    "spawned": {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"},
}

# What is printed of the log: times, and what was found compiled or had to be compiled.
SAID = r"\btook\b|seconds|\bs\b.*GiB|[Ll]oad(ed)?\b|ready|weights|spawn|AOT|memory plan|ache directory"


def modes(folder: Path) -> list[str]:
    """Return how an artifact with a chat model can be deployed, with a classifier last."""
    return ["chat", *(["both"] if json.loads((folder / "build_metadata.json").read_text())["tool"] else [])]


def ways(folder: Path, rounds: int, picked: Sequence[str]) -> None:
    """Start in turns, and print the median of each phase, each way in a column."""
    took: dict[str, list[dict[str, float]]] = {way: [] for way in picked}
    with tempfile.TemporaryDirectory() as scratch:
        if (compiled := folder / COMPILE_CACHE).is_dir():
            copy_caches(compiled, Path(scratch))
        cache = {"DEPLOY_MODE": modes(folder)[-1], "VLLM_CACHE_ROOT": scratch, "TRITON_CACHE_DIR": f"{scratch}/triton"}
        ours(folder, **cache)
        for _ in range(rounds):
            for way, runs in took.items():
                with Server(folder, **cache, **WAYS[way]) as server:
                    whole = server.wait_ready(400)
                    runs.append(server.start_phases() | {"ready": whole})
                    server.stop()
                print(f"{way}: ready after {whole:.1f} s", flush=True)
    print(f"{'phase':10} " + " ".join(f"{way:>10}" for way in took))
    for phase in dict.fromkeys(phase for runs in took.values() for run in runs for phase in run):
        middle = [median(run.get(phase, 0.0) for run in runs) for runs in took.values()]
        print(f"{phase:10} " + " ".join(f"{seconds:10.2f}" for seconds in middle), flush=True)


def ours(folder: Path, profile: Path | None = None, **env: str) -> float:
    """Measure the seconds until /readyz answers 200."""
    with Server(folder, VLLM_LOGGING_LEVEL="INFO", **env) as server:
        looker = looking_at(server, profile) if profile else None
        try:
            seconds = server.wait_ready(400)
            if looker:
                looker.send_signal(signal.SIGINT)  # it writes then
                looker.wait(60)
        finally:
            if looker:
                looker.kill()
        for phase, took in server.start_phases().items():
            print(f"    {phase:10} {took:6.2f} s")
        for event in server.log.read_text().splitlines():
            if re.search(SAID, event):
                print("   ", event[:220])
        server.stop()
    return seconds


def looking_at(server: Server, out: Path) -> subprocess.Popen[bytes]:
    """Start py-spy on a server and all that it starts, 50 times a second."""
    assert server.process is not None
    program = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}") or "py-spy"
    command = [program, "record", "--pid", str(server.process.pid), "--subprocesses", "--idle", "--rate", "50"]
    return subprocess.Popen(
        [*command, "--nonblocking", "--duration", "300", "--format", "chrometrace", "--output", str(out)]
    )


def vllm_serve(folder: Path) -> float:
    """Measure the seconds until /health answers 200, with an empty compile cache."""
    limits = json.loads((folder / "build_metadata.json").read_text())["chat"]["limits"]
    port = free_port()
    with tempfile.TemporaryDirectory() as cache:
        command = [
            *[sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)],
            *["--max-model-len", str(limits["max_model_len"]), "--max-num-seqs", str(limits["max_batch_size"])],
        ]
        began = time.monotonic()
        environment = os.environ | {"VLLM_CACHE_ROOT": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
        with Path(cache, "log").open("wb") as log:
            server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                        return time.monotonic() - began
                except OSError:
                    if server.poll() is not None or time.monotonic() - began > 400:
                        raise RuntimeError(Path(cache, "log").read_text()[-3000:]) from None
                    time.sleep(0.1)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--only", nargs="+", choices=["with", "both", "without", "vllm", "ways"])
    parser.add_argument("--rounds", type=int, default=2, help="of `ways`")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="those of `ways`")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write what each thread did in a start")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started here is ended here
    wanted = arguments.only or ["with", "both", "without", "vllm"]
    times: dict[str, float] = {}
    for path in arguments.artifact.rglob("*.safetensors"):  # warm the operating system's file cache for everyone
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    for name, mode in (("with", "chat"), ("both", "both")):
        if name in wanted and mode in modes(arguments.artifact):
            times[name] = ours(arguments.artifact, DEPLOY_MODE=mode)
            print(f"cold start, {mode}, the artifact's compile cache: {times[name]:.1f} s", flush=True)
    if arguments.profile:
        print(
            f"cold start under py-spy: {ours(arguments.artifact, arguments.profile, DEPLOY_MODE='chat'):.1f} s",
            flush=True,
        )
    if "without" in wanted:
        with tempfile.TemporaryDirectory() as scratch:
            empty = {"VLLM_CACHE_ROOT": scratch, "TRITON_CACHE_DIR": f"{scratch}/triton"}
            times["without"] = ours(arguments.artifact, DEPLOY_MODE="chat", **empty)
        print(f"cold start, no compile cache:             {times['without']:.1f} s", flush=True)
    if "vllm" in wanted:
        times["vllm"] = vllm_serve(arguments.artifact)
        print(f"cold start, vLLM's server, no cache:      {times['vllm']:.1f} s", flush=True)
    if "ways" in wanted:
        ways(arguments.artifact, arguments.rounds, arguments.ways)
    if "with" in times and "vllm" in times:
        print(f"cold start: with the cache {times['with'] / times['vllm']:.2f} × vLLM's server without one")


if __name__ == "__main__":
    main()
