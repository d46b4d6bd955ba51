"""`make bench`: every benchmark that fits a machine without a GPU, in one run.

python -m tests.benchmarks            all sections
python -m tests.benchmarks engine     one of them: gateway, prepare, prompts, starts, store, front, engine, shadow,
                                      scale, watched
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks import engine_alone
from tests.benchmarks.front import front_section
from tests.benchmarks.gateway import gateway_section, prepare_section
from tests.benchmarks.load import Target, run_load
from tests.benchmarks.prompts import prompt_section
from tests.benchmarks.scale import scale_section
from tests.benchmarks.starts import starts_section
from tests.benchmarks.store import store_section
from tests.benchmarks.watched import watched_section
from tests.benchmarks.work import Figures, Sample, figures
from tests.client.ending import ending
from tests.client.statistics import percentile
from tests.harness.server import Server

STREAMS = (1, 8)
WORDS, REPLY, ROUNDS = 60, 60, 2
SHADOW_ROUNDS = 8


def artifact(folder: Path) -> Path:
    """Return the artifact that `make demo` makes; it is made now when it is not there."""
    if not (folder / "build_metadata.json").exists():
        command = [sys.executable, "-m", "pipeline", "run", "--cpu", "8bit", "embedded", "embedded"]
        subprocess.run([*command, "--out", str(folder)], check=True)
    return folder


def engine_section(folder: Path) -> None:
    """Measure the engine alone and the runtime over WebSocket on the same work, one after the other."""
    print(f"\nengine: vLLM alone in process, then the runtime over WebSocket ({folder}, {REPLY} tokens a reply)")
    alone: dict[int, Figures] = {}

    async def measure() -> None:
        llm = engine_alone.start(folder, max_model_len=2048, max_num_seqs=16)
        try:
            await engine_alone.measure(llm, engine_alone.prompts(folder, 1, 1, WORDS, 9001), 1, 1, 8)
            for streams in STREAMS:
                prompts = engine_alone.prompts(folder, streams, ROUNDS, WORDS, streams * 1000)
                samples = await engine_alone.measure(llm, prompts, streams, ROUNDS, REPLY)
                alone[streams] = figures(streams, samples)
                print(alone[streams].line("engine alone"), flush=True)
        finally:
            llm.shutdown()

    asyncio.run(measure())
    with Server(folder, CHAT_MAX_OUT=str(REPLY), WS_MAX_MESSAGES_PER_WINDOW="0", DEPLOY_MODE="chat") as server:
        server.wait_ready()
        target = Target("yap", server.url, server.api_key, words=WORDS, max_tokens=REPLY)
        run_load(target, 1, 1, 1, first_seed=9001)
        for streams in STREAMS:
            samples = run_load(target, streams, ROUNDS, 1, first_seed=streams * 1000)
            ours = figures(streams, samples)
            print(ours.line("runtime over WebSocket"))
            print(f"{'ratio':28} {streams:5} streams  {ours.tokens_per_s / alone[streams].tokens_per_s:10.3f} tok/s")
        server.stop()


def shadow_section(folder: Path) -> None:
    """Measure the time to first token with the classifier and without, the prefill being the same.

    Both servers are up all the time and take turns, so that whatever else the machine does falls on both alike.
    """
    print("\nshadow: time to first token with the tool decision and without")
    samples: dict[str, list[Sample]] = {"chat": [], "both": []}
    with ExitStack() as stack:
        targets = {}
        for mode in samples:
            variables = {"CHAT_MAX_OUT": "8", "WS_MAX_MESSAGES_PER_WINDOW": "0", "DEPLOY_MODE": mode}
            server = stack.enter_context(Server(folder, **variables))
            server.wait_ready()
            targets[mode] = Target("yap", server.url, server.api_key, words=WORDS * 3, max_tokens=8)
            run_load(targets[mode], 1, 4, 1, first_seed=9100)
        medians: list[dict[str, float]] = []
        for number in range(SHADOW_ROUNDS):
            order = sorted(samples, reverse=bool(number % 2))
            found = {mode: run_load(targets[mode], 1, 10, 1, first_seed=70_000 + number * 10) for mode in order}
            medians.append({mode: figures(1, found[mode]).ttft_p50 for mode in found})
            for mode in found:
                samples[mode] += found[mode]
    whole = {mode: figures(1, samples[mode]) for mode in samples}
    for mode, found_all in whole.items():
        print(found_all.line(f"deployed: {mode}"), flush=True)
    ratios = sorted(median["both"] / median["chat"] for median in medians)
    print(
        f"shadow: TTFT p50 with the decision is {whole['both'].ttft_p50 / whole['chat'].ttft_p50:.3f} × chat only "
        f"(by round: {ratios[0]:.3f} to {ratios[-1]:.3f}, median {percentile(ratios, 50):.3f})"
    )


def main() -> None:
    sections = {
        "gateway": gateway_section,
        "prepare": prepare_section,
        "prompts": prompt_section,
        "starts": starts_section,
        "store": store_section,
        "front": front_section,
        "engine": engine_section,
        "shadow": shadow_section,
        "scale": scale_section,
        "watched": watched_section,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(sections)} (default: all)")
    parser.add_argument("--artifact", type=Path, default=Path("artifacts/demo"))
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(sections):
        parser.error(f"expected {', '.join(sections)}, found {', '.join(sorted(unknown))}")
    wanted = arguments.sections or list(sections)
    without = {"gateway", "prepare", "store", "scale"}  # these need no model
    folder = arguments.artifact if without.issuperset(wanted) else artifact(arguments.artifact)
    for name in wanted:
        sections[name](folder)


if __name__ == "__main__":
    with ending():
        main()
