"""What it costs to be watched: a turn's CPU with traces and without, and a token's with vLLM's own statistics."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

from tests.benchmarks.gateway import cpu_seconds, instant
from tests.benchmarks.load import Target, run_load
from tests.harness.server import Server

# Short replies: a trace is made once a turn.
REPLY, STREAMS, TURNS, PAIRS = 8, 8, 100, 7


class Collector(BaseHTTPRequestHandler):
    """Takes every span, counts how often some came, and says nothing."""

    protocol_version = "HTTP/1.1"
    taken = 0

    def do_POST(self) -> None:
        """Take what was sent."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        Collector.taken += 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def turn_cost(server: Server, first_seed: int) -> float:
    """Return the server's CPU in microseconds a turn."""
    before = cpu_seconds(server)
    run_load(Target("yap", server.url, server.api_key, words=10), STREAMS, TURNS, 1, first_seed=first_seed)
    return (cpu_seconds(server) - before) / (STREAMS * TURNS) * 1e6


def traces(pairs: int = PAIRS) -> dict[str, list[float]]:
    """Measure turns with traces and without, in turns; twice without, so that one sees what chance does."""
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_address[1]}"
    names = {"off": "", "off again": "", "on": endpoint}
    found: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        stack.callback(collector.shutdown)
        servers = {
            name: stack.enter_context(instant(REPLY, OTEL_EXPORTER_OTLP_ENDPOINT=value, LOG_TURNS="0"))
            for name, value in names.items()
        }
        for server in servers.values():
            server.wait_ready()
            turn_cost(server, 1)  # what happens once
        for number in range(pairs):
            for name, server in servers.items():
                found[name].append(turn_cost(server, 1_000_000 * (number + 2)))
    assert Collector.taken, "expected that spans were sent, found none"
    return found


def statistics(folder: Path, pairs: int = PAIRS) -> dict[str, list[float]]:
    """Measure vLLM's part of a token with its statistics and without, in turns."""
    import uvloop

    from tests.benchmarks.front import alone

    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    found: dict[str, list[float]] = {"off": [], "on": []}
    for _ in range(pairs):
        for name, measured in found.items():
            measured.append(uvloop.run(alone(folder, 64, 1, statistics=name == "on"))[0])
    return found


def watched_section(folder: Path) -> None:
    """Print both, medians and what they lie between."""
    print("\nwatched: what traces and vLLM's statistics cost, in turns")
    for what, unit, found in (
        ("traces", f"turn of {REPLY} tokens", traces()),
        ("METRICS_ENGINE, vLLM's part alone", "token", statistics(folder)),
    ):
        for name, measured in found.items():
            print(
                f"watched: {what} {name}: {median(measured):.1f} µs CPU a {unit}, {min(measured):.1f} to "
                f"{max(measured):.1f}, {len(measured)} times",
                flush=True,
            )
