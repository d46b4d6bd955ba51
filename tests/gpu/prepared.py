#!/usr/bin/env python3
"""Measures what `prepare` is worth on a GPU: from a `start` to its first token, ready, not ready, and without.

    python3 tests/gpu/prepared.py ARTIFACT [--streams 64] [--turns 12]

Prints a line for each way, and whether the target is met: half of the hits within 1 ms at 64 streams. The load has CPUs
of its own, as in `streams.py`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.load import split_cpus
from tests.client.prepared import REPLY, measure
from tests.client.statistics import percentile
from tests.harness.server import STEADY, Server

TARGET_MS = 1.0
WORDS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--turns", type=int, default=12, help="of each stream")
    parser.add_argument("--listeners-cpus", type=int, metavar="N", help="CPUs for the load alone; default: a quarter")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started here is ended here
    serving, listening = split_cpus(os.sched_getaffinity(0), arguments.listeners_cpus)
    variables = {
        **STEADY,
        "CHAT_MAX_OUT": str(REPLY),
        "DEPLOY_MODE": "chat",
        "MAX_CONCURRENT_CONNECTIONS": str(arguments.streams + 16),
        "WS_MAX_MESSAGES_PER_WINDOW": "0",
        "WS_MAX_PREPARES_PER_WINDOW": "0",
    }
    os.sched_setaffinity(0, serving)
    with Server(arguments.artifact, **variables) as server:
        server.wait_ready(400)
        os.sched_setaffinity(0, listening)
        found = measure(server, arguments.streams, arguments.turns, WORDS, 80_000_000, processes=len(listening) or 1)
        os.sched_setaffinity(0, serving)
        print(f"the server exited {server.stop()}")
    hits = sorted(spoken.first * 1000 for spoken in found if spoken.way == "hit" and spoken.prepared)
    median = percentile(hits, 50) if hits else float("inf")
    met = "met" if median <= TARGET_MS else "missed"
    print(f"prepared: p50 of {len(hits)} hits {median:.2f} ms, target {TARGET_MS:g} ms: {met}")


if __name__ == "__main__":
    main()
