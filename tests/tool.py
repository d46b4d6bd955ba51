#!/usr/bin/env python3
"""Replay labelled conversations against the screenshot decision: accuracy, precision, recall, latency."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter

from client import ClientError, Options, ToolCall, Turn, connect, parser, read_options
from client.command import run
from client.statistics import percentile
from messages.tool import CASES, ToolCase


async def replay(options: Options, case: ToolCase, max_steps: int) -> list[tuple[str, bool, bool, float]]:
    """The decisions on one case: (utterance, expected, decided, seconds) for each of its turns."""
    results = []
    async with connect(options) as client:
        fields = options.start_fields(f"tool-{uuid.uuid4().hex[:8]}")
        earlier: list[dict] = []
        for step in case.turns[:max_steps]:
            turn = Turn()
            await client.send("start", **fields, history=earlier, user_utterance=step.text)
            async for frame in client.frames(turn):
                if isinstance(frame, ToolCall):
                    results.append((step.text, step.expect, frame.wanted, turn.clock() - turn.started))
                    await client.send("cancel")  # only the decision is of interest: spare the server the reply
            if turn.tool is None:
                reason = turn.error.code if turn.error else "no toolcall frame"
                raise ClientError(f"{case.name}: expected a decision, found {reason}; is a tool model deployed?")
            if turn.done and not turn.done.cancelled:
                await client.until("done")  # the cancel crossed the turn's own end
            earlier.append({"role": "user", "content": step.text})
    return results


async def main() -> bool:
    arguments_parser = parser(__doc__.splitlines()[0])
    add = arguments_parser.add_argument
    add("--timeout", type=float, default=5.0, help="seconds a case may take")
    add("--concurrency", type=int, default=4, help="cases at once")
    add("--limit", type=int, default=len(CASES), help="cases to replay")
    add("--max-steps", type=int, default=20, help="turns of a case to replay")
    add("--min-accuracy", type=float, default=0.9, help="below this the command fails")
    arguments = arguments_parser.parse_args()
    options = read_options(arguments)
    places = asyncio.Semaphore(arguments.concurrency)
    failures: list[str] = []

    async def one(case: ToolCase) -> list[tuple[str, bool, bool, float]]:
        async with places:
            try:
                return await asyncio.wait_for(replay(options, case, arguments.max_steps), arguments.timeout)
            except asyncio.TimeoutError:
                failures.append(f"{case.name}: no decision within {arguments.timeout:g} s")
            except ClientError as error:
                failures.append(f"{case.name}: {error}")
            return []

    cases = CASES[: arguments.limit]
    outcomes = await asyncio.gather(*(one(case) for case in cases))
    decided = [(case, *step) for case, steps in zip(cases, outcomes, strict=True) for step in steps]
    counts = Counter((expected, found) for _, _, expected, found, _ in decided)
    for case, utterance, expected, found, _ in decided:
        if expected != found:
            print(f"wrong: expected {'yes' if expected else 'no ':3}  {case.kind:18}  {utterance}")
    for failure in failures:
        print(f"failed: {failure}")
    if not decided:
        print("failed: no decision was made")
        return False
    right = counts[True, True] + counts[False, False]
    accuracy = right / len(decided)
    precision = counts[True, True] / max(1, counts[True, True] + counts[False, True])
    recall = counts[True, True] / max(1, counts[True, True] + counts[True, False])
    times = sorted(seconds for *_, seconds in decided)
    print(
        f"{len(cases)} cases, {len(decided)} decisions: accuracy {accuracy:.3f}  precision {precision:.3f}  "
        f"recall {recall:.3f}  decision p50 {percentile(times, 50) * 1000:.0f} ms  "
        f"p95 {percentile(times, 95) * 1000:.0f} ms"
    )
    return not failures and accuracy >= arguments.min_accuracy


if __name__ == "__main__":
    run(main())
