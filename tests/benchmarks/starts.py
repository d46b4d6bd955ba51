"""What the start of a turn costs around an engine that costs nothing: from the client's word to the engine and back.

Once around a table alone, and once with vLLM's own output handling before it (`front.py`), which has a cost of its own
at the first token.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from tests.benchmarks.gateway import cpu_seconds, instant
from tests.benchmarks.load import Target, run_load
from tests.benchmarks.work import figures

STREAMS = (1, 64, 256)
WORDS = 200


def starts_section(folder: Path) -> None:
    """Replies of one token behind a persona that was heard before, rendered by the artifact's own tokenizer."""
    print(f"\nstarts: turns of one token, a persona of {WORDS} words kept from turn to turn ({folder})")
    for name, variables in (("table", {}), ("vllm", {"INSTANT_ENGINE": "vllm"})):
        _measure(name, folder, variables)


def _measure(name: str, folder: Path, variables: dict[str, str]) -> None:
    with instant(1, INSTANT_MODEL=str(folder), **variables) as server:
        server.wait_ready()
        target = Target("yap", server.url, server.api_key, words=WORDS)
        for streams in STREAMS:
            rounds, seed = max(8, 512 // streams), streams * 100_000
            run_load(target, streams, 1, 1, seed, seed)
            before = cpu_seconds(server)
            samples = run_load(target, streams, rounds, 1, seed + 1000, seed)
            used = cpu_seconds(server) - before
            found = figures(streams, samples)
            print(
                f"starts: {name:5} {streams:4} streams: {used / found.turns * 1e6:6.1f} µs server CPU a turn, TTFT p50 "
                f"{found.ttft_p50 * 1000:7.2f} ms (p95 {found.ttft_p95 * 1000:.2f}), by the server's clock "
                f"{median(sample.server_ttft for sample in samples) * 1000:.2f} ms  ({found.turns} turns)",
                flush=True,
            )
        server.stop()
