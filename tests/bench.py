#!/usr/bin/env python3
"""Load: many turns at once, and what their listeners would have noticed."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from pathlib import Path

from client import ClientError, Options, TurnRecord, connect, parser, positive, read_options, whole
from client.command import run
from client.statistics import percentile
from messages.conversation import TURNS
from prompts.detailed import prompt_for

PERCENTILES = (50, 95, 99)


class Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.errors = total, 0, 0
        self.live = sys.stderr.isatty()

    def add(self, ok: bool) -> None:
        self.done += 1
        self.errors += not ok
        if self.live:
            filled = 30 * self.done // self.total
            bar = "█" * filled + "·" * (30 - filled)
            print(f"\r{bar} {self.done}/{self.total}  errors {self.errors}", end="", file=sys.stderr, flush=True)
            if self.done == self.total:
                print(file=sys.stderr)
        elif self.done == self.total or self.done % max(1, self.total // 4) == 0:
            print(f"{self.done}/{self.total} turns, {self.errors} errors", file=sys.stderr)


async def one_client(
    options: Options, utterance: str, repeats: int, timeout: float
) -> list[tuple[str, TurnRecord | None, str | None]]:
    """One connection's turns: (tag, turn, what went wrong)."""
    tags = ("first", "second") if repeats == 2 else ("",)
    fields = options.start_fields(f"bench-{uuid.uuid4().hex[:12]}", prompt_for(options.gender, options.personality))
    results: list[tuple[str, TurnRecord | None, str | None]] = []
    try:
        async with connect(options) as client:
            for tag in tags:
                turn = await asyncio.wait_for(client.start(**fields, history=[], user_utterance=utterance), timeout)
                results.append((tag, turn, turn.problem))
    except asyncio.TimeoutError:
        results.append((tags[len(results)], None, f"no end within {timeout:g} s"))
    except ClientError as error:
        results.append((tags[min(len(results), len(tags) - 1)], None, str(error)))
    return results


def report(results: list[tuple[str, TurnRecord | None, str | None]], elapsed: float) -> dict:
    """The figures of one run, in seconds and tokens per second."""
    turns = [turn for _, turn, problem in results if turn is not None and problem is None]
    series = {
        "ttfb": [turn.ttfb for turn in turns if turn.ttfb is not None],
        "ttft": [turn.ttft for turn in turns if turn.ttft is not None],
        "inter_token": [gap for turn in turns for gap in turn.gaps],
        "total": [turn.total for turn in turns if turn.total is not None],
    }
    figures: dict = {
        name: {f"p{p}": percentile(sorted(values), p) for p in PERCENTILES} for name, values in series.items() if values
    }
    tokens = sum(turn.tokens for turn in turns)
    figures.update(
        turns=len(turns),
        errors=sum(problem is not None for _, _, problem in results),
        tokens=tokens,
        tokens_per_s=tokens / elapsed,
        seconds=elapsed,
    )
    return figures


def show(title: str, figures: dict) -> None:
    print(title)
    for name in ("ttfb", "ttft", "inter_token", "total"):
        if name in figures:
            cells = "  ".join(f"p{p} {figures[name][f'p{p}'] * 1000:9.1f} ms" for p in PERCENTILES)
            print(f"  {name:12} {cells}")
    print(
        f"  {figures['turns']} turns, {figures['errors']} errors, {figures['tokens']} tokens in "
        f"{figures['seconds']:.1f} s: {figures['tokens_per_s']:.1f} tok/s"
    )


def plot(path: Path, results: list[tuple[str, TurnRecord | None, str | None]], began: float) -> None:
    """Latency distribution beside throughput over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    turns = [turn for _, turn, problem in results if turn is not None and problem is None]
    figure, (latency, throughput) = pyplot.subplots(1, 2, figsize=(11, 4))
    for name, values in (
        ("time to first token", [turn.ttft for turn in turns if turn.ttft is not None]),
        ("total", [turn.total for turn in turns if turn.total is not None]),
    ):
        ordered = sorted(value * 1000 for value in values)
        shares = [(index + 1) / len(ordered) for index in range(len(ordered))]
        latency.step(ordered, shares, where="post", label=name)
    latency.set(title="Latency", xlabel="ms", ylabel="share of turns", ylim=(0, 1.02))
    latency.legend()
    # Each turn's tokens are spread evenly between its first token and its end.
    seconds = max((turn.started - began + (turn.total or 0) for turn in turns), default=1.0)
    width = max(seconds / 60, 0.1)
    bins = [0.0] * (int(seconds / width) + 1)
    for turn in turns:
        first = turn.started - began + (turn.ttft or 0)
        last = turn.started - began + (turn.total or 0)
        for index in range(turn.tokens):
            moment = first + (last - first) * index / max(1, turn.tokens - 1)
            bins[min(len(bins) - 1, int(moment / width))] += 1 / width
    throughput.plot([index * width for index in range(len(bins))], bins)
    throughput.set(title="Throughput", xlabel="s", ylabel="tokens/s", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


async def main() -> bool:
    arguments_parser = parser(__doc__.splitlines()[0])
    add = arguments_parser.add_argument
    add("-n", "--requests", type=whole, metavar="N", default=32, help="connections, each with one turn")
    add("-c", "--concurrency", type=whole, metavar="N", default=8, help="connections at once")
    add("--double-ttfb", action="store_true", help="each connection sends its start twice, reported apart")
    add("--timeout", type=positive, metavar="SECONDS", default=180.0, help="longest turn")
    add("--json", type=Path, metavar="FILE", help="write the figures")
    add("--plot", type=Path, metavar="FILE.png", help="draw latency and throughput")
    arguments = arguments_parser.parse_args()
    options = read_options(arguments)
    repeats = 2 if arguments.double_ttfb else 1
    slots = asyncio.Semaphore(arguments.concurrency)
    progress = Progress(arguments.requests * repeats)

    async def one(number: int) -> list[tuple[str, TurnRecord | None, str | None]]:
        async with slots:
            utterance = TURNS[number % len(TURNS)]
            results = await one_client(options, utterance, repeats, arguments.timeout)
            for _, _, problem in results:
                progress.add(problem is None)
            return results

    began = time.perf_counter()
    groups = await asyncio.gather(*(one(number) for number in range(arguments.requests)))
    elapsed = time.perf_counter() - began
    results = [result for group in groups for result in group]
    for problem in dict.fromkeys(problem for _, _, problem in results if problem):
        count = sum(found == problem for _, _, found in results)
        print(f"failed {count}×: {problem}")
    figures = report(results, elapsed)
    document = {"requests": arguments.requests, "concurrency": arguments.concurrency, "all": figures}
    show(f"{arguments.requests} connections, {arguments.concurrency} at once, {options.url}", figures)
    if repeats == 2:
        for tag in ("first", "second"):
            document[tag] = report([result for result in results if result[0] == tag], elapsed)
            show(tag, document[tag])
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(arguments.plot, results, began)
    return figures["errors"] == 0 and figures["turns"] == arguments.requests * repeats


if __name__ == "__main__":
    run(main())
