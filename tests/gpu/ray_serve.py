#!/usr/bin/env python3
"""Measures the server on Ray Serve on this machine's GPUs: start, load through its proxy, a rollout, a killed replica.

    images/install.sh .venv-ray vllm ray . && python3 tests/gpu/ray_serve.py ARTIFACT [--replicas 2] [--streams 16 64]

A replica has as many GPUs as the artifact was built for, in one placement group. `python3` is one that has the
runtime's packages, such as `.venv/bin/python`; Ray runs in `.venv-ray`. An artifact for CPUs is measured too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[2] / "client")]

from runtime.server.ray_serve import application
from tests.benchmarks.load import Target, run_load
from tests.client.statistics import percentile
from tests.harness.fleet.ray_serve import MISSING, PYTHON, RayServe
from tests.harness.scripted import KEY
from yap_client import Backoff, Done, Final, Interrupted, Sampling, Talk, connect

REPLY = 150
LISTENERS = 8


def load(ray: RayServe, streams: Sequence[int]) -> None:
    """Print what streams for all replicas together get."""
    for number in streams:
        target = Target("yap", ray.url, KEY, words=200, max_tokens=REPLY, keyed=True)
        run_load(target, number, 1, 4, first_seed=number * 1000, first_persona=number * 10_000)
        before = ray.cpu_seconds()
        samples = run_load(target, number, 2, 4, first_seed=number * 2000, first_persona=number * 10_000)
        frames = sum(sample.frames for sample in samples)
        span = max(sample.ended for sample in samples) - min(sample.started for sample in samples)
        ttft = sorted(sample.ttft * 1000 for sample in samples)
        print(
            f"| {number} streams | {frames / span:.0f} frames/s | TTFT p50 {percentile(ttft, 50):.0f}, "
            f"p99 {percentile(ttft, 99):.0f} ms | proxy {(ray.cpu_seconds() - before) / frames * 1e6:.0f} µs a frame |",
            flush=True,
        )


class Listener:
    """One client that talks until it is told to stop.

    Attributes:
        turns: how many were answered whole.
        cut: how many replies were cut that had begun.
        away: seconds from such a cut to the next whole reply.
    """

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.turns = self.cut = 0
        self.away: list[float] = []

    async def speak(self, over: asyncio.Event) -> None:
        """Talk."""
        since: float | None = None
        while not over.is_set():
            whole = False
            async for event in self.talk.say("Go on.", sampling=Sampling(max_tokens=24)):
                if isinstance(event, Interrupted) and event.begun:
                    self.cut += 1
                    since = time.monotonic() if since is None else since
                whole = whole or isinstance(event, Final)
                if isinstance(event, Done) and event.failed:
                    await asyncio.sleep(0.05)
            if whole:
                self.turns += 1
                if since is not None:
                    self.away.append(time.monotonic() - since)
                    since = None


async def events(ray: RayServe, replicas: int, patience: float) -> None:
    """Roll out, then kill a replica, while listeners converse; print what they noticed."""
    talks = [
        connect(
            ray.url,
            KEY,
            session=f"listener-{number}",
            persona="Answer in one sentence.",
            backoff=Backoff(first=0.05, most=0.5, within=patience),
            silence=60,
        )
        for number in range(LISTENERS)
    ]
    them = [Listener(talk) for talk in talks]
    for talk in talks:
        await talk.__aenter__()
    over = asyncio.Event()
    speaking = [asyncio.create_task(one.speak(over)) for one in them]
    try:
        await asyncio.sleep(5)
        old = frozenset(one.id for one in ray.replicas())
        ray.application["runtime_env"]["env_vars"]["DRAIN_TIMEOUT_S"] = "20"
        began = time.monotonic()
        await asyncio.to_thread(ray.deploy)
        there = await asyncio.to_thread(ray.wait_running, replicas, without=old, timeout=patience)
        await asyncio.to_thread(ray.wait_gone, old)
        print(
            f"| rollout | {time.monotonic() - began:.0f} s | replies cut {sum(one.cut for one in them)} | |", flush=True
        )
        victim = there[0]
        assert victim.pid is not None
        began = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        await asyncio.to_thread(ray.wait_running, replicas, without=frozenset({victim.id}), timeout=patience)
        back = time.monotonic() - began
        await asyncio.sleep(3)
    finally:
        over.set()
        await asyncio.gather(*speaking)
        for talk in talks:
            await talk.__aexit__(None, None, None)
    away = sorted(seconds for one in them for seconds in one.away)
    cells = f"away p50 {percentile(away, 50):.1f}, most {away[-1]:.1f} s" if away else "nobody was cut"
    turns = sum(one.turns for one in them)
    print(f"| a replica is killed | another after {back:.0f} s | {cells} | {turns} turns in all |", flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description="Measures the server on Ray Serve on this machine's GPUs.")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--surge", type=int, default=0, help="percent of replicas that a rollout starts before")
    parser.add_argument("--patience", type=float, default=900, help="seconds that replicas may take to load")
    parser.add_argument("--modules", default="", help="a folder with the engine's packages, where .venv-ray has none")
    chosen = parser.parse_args()
    if not PYTHON.exists():
        sys.exit(f"ray_serve: {MISSING}")
    modules = [str(Path(__file__).resolve().parents[2]), *([chosen.modules] if chosen.modules else [])]
    variables = {
        "ARTIFACT": str(chosen.artifact.resolve()),
        "DEPLOY_MODE": "chat",
        "CHAT_MAX_OUT": str(REPLY),
        "MAX_CONCURRENT_CONNECTIONS": "2200",
        "PYTHONPATH": os.pathsep.join(modules),
        **{name: value for name, value in os.environ.items() if name.startswith(("VLLM_", "TENSOR_", "PIPELINE_"))},
    }
    began = time.monotonic()
    build = f"{application.__name__}:{application.build.__name__}"
    arguments = {"replicas": chosen.replicas, "gpus": None}
    with RayServe(1, build, arguments=arguments, cpus=max(4, os.cpu_count() or 1), **variables) as ray:
        ray.application["deployments"][0]["max_surge_percent"] = chosen.surge
        ray.wait_running(chosen.replicas, timeout=chosen.patience)
        print(f"| ready | {time.monotonic() - began:.0f} s | {chosen.replicas} replicas | |", flush=True)
        load(ray, chosen.streams)
        asyncio.run(events(ray, chosen.replicas, chosen.patience))


if __name__ == "__main__":
    main()
