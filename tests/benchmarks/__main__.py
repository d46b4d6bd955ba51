"""`make bench`: every benchmark that fits a machine without a GPU, in one run.

python -m tests.benchmarks            all sections
python -m tests.benchmarks engine     one of them: gateway, prompts, engine, shadow
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path

from tests.benchmarks import engine_alone
from tests.benchmarks.gateway import gateway_section
from tests.benchmarks.load import Target, run_load
from tests.benchmarks.prompts import prompt_section
from tests.benchmarks.work import Figures, figures
from tests.server import Server

STREAMS = (1, 8)
WORDS, REPLY, ROUNDS = 60, 60, 2


def artifact(folder: Path) -> Path:
    """The artifact that `make demo` makes; made now when it is not there."""
    if not (folder / "build_metadata.json").exists():
        command = [sys.executable, "-m", "pipeline", "run", "--cpu", "8bit", "embedded", "embedded"]
        subprocess.run([*command, "--out", str(folder)], check=True)
    return folder


def engine_section(folder: Path) -> None:
    """The engine alone against the runtime over WebSocket, the same work, one after the other."""
    print(f"\nengine: vLLM alone in process, then the runtime over WebSocket ({folder}, {REPLY} tokens a reply)")
    alone: dict[int, Figures] = {}

    async def measure() -> None:
        llm = engine_alone.start(folder, max_model_len=2048, max_num_seqs=16)
        try:
            await engine_alone.measure(llm, engine_alone.prompts(folder, [9001], WORDS), 1, 1, 8)
            for streams in STREAMS:
                seeds = [streams * 1000 + number for number in range(streams * ROUNDS)]
                prompts = engine_alone.prompts(folder, seeds, WORDS)
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
    """Time to first token with the classifier and without, the prefill being the same."""
    print("\nshadow: time to first token with the tool decision and without")
    medians: dict[str, float] = {}
    for mode in ("chat", "both"):
        variables = {"CHAT_MAX_OUT": "8", "WS_MAX_MESSAGES_PER_WINDOW": "0", "DEPLOY_MODE": mode}
        with Server(folder, **variables) as server:
            server.wait_ready()
            target = Target("yap", server.url, server.api_key, words=WORDS * 3, max_tokens=8)
            run_load(target, 1, 4, 1, first_seed=9100)
            found = figures(1, run_load(target, 1, 30, 1, first_seed=70_000))
            medians[mode] = found.ttft_p50
            print(found.line(f"deployed: {mode}"), flush=True)
            server.stop()
    print(f"shadow: TTFT p50 with the decision is {medians['both'] / medians['chat']:.3f} × chat only")


def main() -> None:
    sections = {
        "gateway": gateway_section,
        "prompts": prompt_section,
        "engine": engine_section,
        "shadow": shadow_section,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(sections)} (default: all)")
    parser.add_argument("--artifact", type=Path, default=Path("artifacts/demo"))
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(sections):
        parser.error(f"expected {', '.join(sections)}, found {', '.join(sorted(unknown))}")
    wanted = arguments.sections or list(sections)
    folder = arguments.artifact if wanted == ["gateway"] else artifact(arguments.artifact)
    for name in wanted:
        sections[name](folder)


if __name__ == "__main__":
    main()
