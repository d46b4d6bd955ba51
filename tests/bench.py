#!/usr/bin/env python3
"""Load: many turns at once, and what their listeners would have noticed."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from client import Options, TurnRecord, connect, parser, positive, read_options, whole
from client.chart import check_drawing, check_output, draw
from client.command import run
from client.load import PERCENTILES, Ask, Bounds, Outcome, arrivals, figures, good_turns, read_asks
from messages.conversation import TURNS
from prompts.detailed import prompt_for
from yap_client import Sampling, YapError


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


async def one_client(options: Options, ask: Ask, repeats: int, timeout: float) -> list[Outcome]:
    """One connection's turns."""
    tags = ("first", "second") if repeats == 2 else ("",)
    persona = prompt_for(options.gender, options.personality)
    sampling: Sampling = {} if ask.max_tokens is None else {"max_tokens": ask.max_tokens}
    outcomes: list[Outcome] = []
    try:
        async with connect(options, persona=persona, sampling=sampling) as talk:
            for tag in tags:
                record = TurnRecord(talk.say(ask.utterance, history=[]))
                turn = await asyncio.wait_for(record.whole(), timeout)
                outcomes.append(Outcome(tag, turn, turn.problem))
    except asyncio.TimeoutError:
        outcomes.append(Outcome(tags[len(outcomes)], None, f"no end within {timeout:g} s"))
    except YapError as error:
        outcomes.append(Outcome(tags[min(len(outcomes), len(tags) - 1)], None, str(error)))
    return outcomes


def show(title: str, found: dict) -> None:
    print(title)
    for name in ("ttfb", "ttft", "inter_token", "total"):
        if name in found:
            cells = "  ".join(f"p{p} {found[name][f'p{p}'] * 1000:9.1f} ms" for p in PERCENTILES)
            print(f"  {name:12} {cells}")
    print(
        f"  {found['turns']} turns, {found['errors']} errors, {found['tokens']} tokens in "
        f"{found['seconds']:.1f} s: {found['tokens_per_s']:.1f} tok/s"
    )
    if "goodput" in found:
        good = found["goodput"]
        print(f"  goodput      {good['share']:.1%} of the turns within the bounds, {good['turns_per_s']:.2f} turns/s")


async def load(
    options: Options, asks: Sequence[Ask], *, concurrency: int, rate: float | None, repeats: int, timeout: float
) -> list[Outcome]:
    """Hold one connection for each ask, so many at once, beginning all at once or at a rate."""
    slots = asyncio.Semaphore(concurrency)
    progress = Progress(len(asks) * repeats)
    began = time.perf_counter()

    async def one(ask: Ask, at: float) -> list[Outcome]:
        await asyncio.sleep(began + at - time.perf_counter())
        async with slots:
            outcomes = await one_client(options, ask, repeats, timeout)
            for outcome in outcomes:
                progress.add(outcome.problem is None)
            return outcomes

    groups = await asyncio.gather(*map(one, asks, arrivals(len(asks), rate)))
    return [outcome for group in groups for outcome in group]


async def main() -> bool:
    arguments_parser = parser(__doc__.splitlines()[0])
    add = arguments_parser.add_argument
    add("-n", "--requests", type=whole, metavar="N", default=32, help="connections, each with one turn")
    add("-c", "--concurrency", type=whole, metavar="N", default=8, help="connections at once, at most")
    add("--rate", type=positive, metavar="R", help="begin so many a second, rather than as soon as one may")
    add("--warm-up", type=whole, metavar="N", help="connections before the measured ones; in no figure")
    add("--input", type=Path, metavar="FILE", help="JSON lines: utterance, or input_words; output_tokens")
    add("--double-ttfb", action="store_true", help="each connection sends its start twice, reported apart")
    add("--timeout", type=positive, metavar="SECONDS", default=180.0, help="longest turn")
    add("--max-ttft-ms", type=positive, metavar="MS", help="goodput: first token at most")
    add("--max-itl-ms", type=positive, metavar="MS", help="goodput: between tokens at most, on average over a turn")
    add("--max-total-ms", type=positive, metavar="MS", help="goodput: whole turn at most")
    add("--json", type=Path, metavar="FILE", help="write the figures")
    add("--plot", type=Path, metavar="FILE.png", help="draw latency and throughput")
    arguments = arguments_parser.parse_args()
    options = read_options(arguments)
    check_drawing(arguments.plot)
    check_output(arguments.json, arguments.plot)
    try:
        asks = read_asks(arguments.input) if arguments.input else [Ask(utterance) for utterance in TURNS]
    except (OSError, ValueError) as error:
        arguments_parser.error(f"--input: {error}")
    bounds = Bounds(
        *(value and value / 1000 for value in (arguments.max_ttft_ms, arguments.max_itl_ms, arguments.max_total_ms))
    )
    repeats = 2 if arguments.double_ttfb else 1
    how = {"concurrency": arguments.concurrency, "repeats": repeats, "timeout": arguments.timeout}
    if arguments.warm_up:
        print(f"warming up: {arguments.warm_up} connections", file=sys.stderr)
        await load(options, [asks[number % len(asks)] for number in range(arguments.warm_up)], rate=None, **how)
    began = time.perf_counter()
    chosen = [asks[number % len(asks)] for number in range(arguments.requests)]
    outcomes = await load(options, chosen, rate=arguments.rate, **how)
    elapsed = time.perf_counter() - began
    for problem in dict.fromkeys(one.problem for one in outcomes if one.problem):
        count = sum(one.problem == problem for one in outcomes)
        print(f"failed {count}×: {problem}")
    whole_run = figures(outcomes, elapsed, bounds)
    document = {
        "requests": arguments.requests,
        "concurrency": arguments.concurrency,
        "rate": arguments.rate,
        "all": whole_run,
    }
    pace = f", {arguments.rate:g} a second" if arguments.rate else ""
    title = f"{arguments.requests} connections, {arguments.concurrency} at once{pace}, {options.url}"
    show(title, whole_run)
    if repeats == 2:
        for tag in ("first", "second"):
            document[tag] = figures([one for one in outcomes if one.tag == tag], elapsed, bounds)
            show(tag, document[tag])
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        draw(arguments.plot, title, good_turns(outcomes), began, bounds)
    return whole_run["errors"] == 0 and whole_run["turns"] == arguments.requests * repeats


if __name__ == "__main__":
    run(main())
