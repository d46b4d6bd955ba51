#!/usr/bin/env python3
"""Replay labelled conversations against the screenshot decision: accuracy, precision, recall, latency."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from dataclasses import dataclass

from client import Client, ClientError, Options, ToolCall, TurnRecord, connect, parser, positive, read_options, whole
from client.command import run
from client.statistics import percentile
from messages.tool import CASES, ToolCase

NO_DECISION = "expected a toolcall, found none; is a tool model deployed?"


@dataclass(frozen=True)
class CaseResult:
    """One decision: about what, the right one, the one made, and the seconds it took."""

    case: ToolCase
    utterance: str
    expected: bool
    found: bool
    seconds: float


async def decide(client: Client, fields: dict, earlier: list[dict], utterance: str) -> tuple[bool, float]:
    """The decision on one utterance, and how long it took."""
    turn = TurnRecord()
    seconds = 0.0
    await client.send("start", **fields, history=earlier, user_utterance=utterance)
    async for frame in client.frames(turn):
        if isinstance(frame, ToolCall):
            seconds = turn.clock() - turn.started
            await client.send("cancel")  # only the decision is of interest: spare the server the reply
    if turn.tool is None:
        raise ClientError(f"{turn.error.code}: {turn.error.message}" if turn.error else NO_DECISION)
    if turn.done and not turn.done.cancelled:
        await client.until("done")  # the cancel crossed the turn's own end
    return turn.tool.wanted, seconds


async def replay(options: Options, case: ToolCase, max_steps: int, timeout: float) -> list[CaseResult]:
    """The decisions on one case, in a session of its own."""
    results = []
    async with connect(options) as client:
        fields = options.start_fields(f"tool-{uuid.uuid4().hex[:8]}")
        earlier: list[dict] = []
        for step in case.turns[:max_steps]:
            found, seconds = await asyncio.wait_for(decide(client, fields, earlier, step.text), timeout)
            results.append(CaseResult(case, step.text, step.expect, found, seconds))
            earlier.append({"role": "user", "content": step.text})
    return results


async def main() -> bool:
    arguments_parser = parser(__doc__.splitlines()[0])
    add = arguments_parser.add_argument
    add("--timeout", type=positive, metavar="SECONDS", default=5.0, help="longest decision")
    add("--concurrency", type=whole, metavar="N", default=4, help="cases at once")
    add("--limit", type=whole, metavar="N", default=len(CASES), help="cases to replay")
    add("--max-steps", type=whole, metavar="N", default=20, help="turns of a case to replay")
    add("--min-accuracy", type=float, metavar="SHARE", default=0.9, help="below this the command fails")
    arguments = arguments_parser.parse_args()
    options = read_options(arguments)
    slots = asyncio.Semaphore(arguments.concurrency)
    failures: Counter[str] = Counter()

    async def one(case: ToolCase) -> list[CaseResult]:
        async with slots:
            try:
                return await replay(options, case, arguments.max_steps, arguments.timeout)
            except asyncio.TimeoutError:
                failures[f"no decision within {arguments.timeout:g} s"] += 1
            except ClientError as error:
                failures[str(error)] += 1
            return []

    cases = CASES[: arguments.limit]
    outcomes = await asyncio.gather(*(one(case) for case in cases))
    decided = [step for steps in outcomes for step in steps]
    counts = Counter((step.expected, step.found) for step in decided)
    for step in decided:
        if step.expected != step.found:
            print(f"wrong: expected {'yes' if step.expected else 'no':3}  {step.case.kind:18}  {step.utterance}")
    for failure, times in failures.items():
        print(f"failed {times}×: {failure}")
    if not decided:
        return False
    right = counts[True, True] + counts[False, False]
    accuracy = right / len(decided)
    precision = counts[True, True] / max(1, counts[True, True] + counts[False, True])
    recall = counts[True, True] / max(1, counts[True, True] + counts[True, False])
    seconds = sorted(step.seconds for step in decided)
    print(
        f"{len(cases)} cases, {len(decided)} decisions: accuracy {accuracy:.3f}  precision {precision:.3f}  "
        f"recall {recall:.3f}  decision p50 {percentile(seconds, 50) * 1000:.0f} ms  "
        f"p95 {percentile(seconds, 95) * 1000:.0f} ms"
    )
    return not failures and accuracy >= arguments.min_accuracy


if __name__ == "__main__":
    run(main())
