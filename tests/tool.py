#!/usr/bin/env python3
"""Replay labelled conversations against the tool decision: accuracy, precision and recall of each tool, and latency."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from client import Options, TurnRecord, connect, parser, positive, read_options, whole
from client.command import run
from client.statistics import percentile
from messages.tool import CASES, ToolCase, read_cases
from yap_client import Talk, ToolCall, YapError

NO_DECISION = "expected a toolcall, found none; is a tool model deployed?"


@dataclass(frozen=True)
class CaseResult:
    """One decision: about what, the tools that are right, those that were asked for, and the seconds it took."""

    case: ToolCase
    utterance: str
    expected: frozenset[str]
    found: frozenset[str]
    seconds: float


@dataclass(frozen=True)
class ToolScore:
    """How well one tool is asked for, or several together, by the counts of its decisions."""

    hits: int
    false_alarms: int
    misses: int
    left_alone: int

    @classmethod
    def of(cls, tools: Iterable[str], results: Sequence[CaseResult]) -> ToolScore:
        """Count the decisions on some tools."""
        pairs = Counter((tool in one.expected, tool in one.found) for tool in tools for one in results)
        return cls(pairs[True, True], pairs[False, True], pairs[True, False], pairs[False, False])

    @property
    def accuracy(self) -> float:
        """The part of the decisions that are right."""
        return (self.hits + self.left_alone) / max(1, self.hits + self.left_alone + self.false_alarms + self.misses)

    @property
    def precision(self) -> float:
        """The part of what is asked for that is right."""
        return self.hits / max(1, self.hits + self.false_alarms)

    @property
    def recall(self) -> float:
        """The part of what should be asked for that is."""
        return self.hits / max(1, self.hits + self.misses)

    @property
    def balanced(self) -> float:
        """The mean of the parts that are right where the tool should be asked for, and where not."""
        return (self.recall + self.left_alone / max(1, self.left_alone + self.false_alarms)) / 2

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.3f}  precision {self.precision:.3f}  recall {self.recall:.3f}"


async def decide(talk: Talk, earlier: list[dict], utterance: str) -> tuple[frozenset[str], float]:
    """The tools that are asked for after one utterance, and how long the decision took."""
    turn = TurnRecord(talk.say(utterance, history=earlier))
    seconds = 0.0
    async for event in turn:
        if isinstance(event, ToolCall):
            seconds = turn.clock() - turn.started
            turn.turn.cancel()  # only the decision is of interest: spare the server the reply
    if turn.tool is None:
        raise YapError(turn.problem if turn.problem and not turn.cancelled else NO_DECISION)
    return frozenset(turn.tool.tools) if turn.tool.status == "yes" else frozenset(), seconds


async def replay(options: Options, case: ToolCase, max_steps: int, timeout: float) -> list[CaseResult]:
    """The decisions on one case, in a session of its own."""
    results = []
    async with connect(options) as talk:
        earlier: list[dict] = []
        for step in case.turns[:max_steps]:
            if step.tools is not None:
                found, seconds = await asyncio.wait_for(decide(talk, earlier, step.text), timeout)
                results.append(CaseResult(case, step.text, step.tools, found, seconds))
            earlier.append({"role": "user", "content": step.text})
    return results


def report(cases: Sequence[ToolCase], decided: Sequence[CaseResult], *, balanced: bool, least: float) -> bool:
    """Print what was decided; whether each tool that the cases ask for is right often enough."""
    measured = sorted({tool for case in cases for turn in case.turns for tool in turn.tools or ()})
    for step in decided:
        # Of a tool that no case asks for, nobody says when it is right.
        right, asked = (", ".join(sorted(tools & set(measured))) or "no" for tools in (step.expected, step.found))
        if measured == ["take_screenshot"]:
            right, asked = ("no" if told == "no" else "yes" for told in (right, asked))
        if right != asked:
            print(f"wrong: expected {right:3}  {step.case.kind:18}  {step.utterance}  (found {asked})")
    seconds = sorted(step.seconds for step in decided)
    print(
        f"{len(cases)} cases, {len(decided)} decisions: {ToolScore.of(measured, decided)}  "
        f"decision p50 {percentile(seconds, 50) * 1000:.0f} ms  p95 {percentile(seconds, 95) * 1000:.0f} ms"
    )
    passed = True
    for tool in measured:
        score = ToolScore.of([tool], decided)
        figure = score.balanced if balanced else score.accuracy
        passed = passed and figure >= least
        if measured != ["take_screenshot"]:
            print(f"  {tool}: {score}  balanced {score.balanced:.3f}  asked for by {score.hits + score.misses}")
    others = Counter(tool for step in decided for tool in step.found if tool not in measured)
    for tool, times in sorted(others.items()):
        print(f"  {tool}: not measured, no case asks for it; the server did {times}×")
    return passed


async def main() -> bool:
    arguments_parser = parser(__doc__.splitlines()[0])
    add = arguments_parser.add_argument
    add("--utterances", type=Path, metavar="FILE", help="JSONL of labelled utterances (text, label) of any tools")
    add("--timeout", type=positive, metavar="SECONDS", default=5.0, help="longest decision")
    add("--concurrency", type=whole, metavar="N", default=4, help="cases at once")
    add("--limit", type=whole, metavar="N", help="cases to replay; else all")
    add("--max-steps", type=whole, metavar="N", default=20, help="turns of a case to replay")
    add("--min-accuracy", type=float, metavar="SHARE", default=0.9, help="below this, for any tool, the command fails")
    arguments = arguments_parser.parse_args()
    options = read_options(arguments)
    try:
        cases = read_cases(arguments.utterances) if arguments.utterances else CASES
    except ValueError as error:
        arguments_parser.error(f"--utterances: {error}")
    cases = cases[: arguments.limit]
    slots = asyncio.Semaphore(arguments.concurrency)
    failures: Counter[str] = Counter()

    async def one(case: ToolCase) -> list[CaseResult]:
        async with slots:
            try:
                return await replay(options, case, arguments.max_steps, arguments.timeout)
            except asyncio.TimeoutError:
                failures[f"no decision within {arguments.timeout:g} s"] += 1
            except YapError as error:
                failures[str(error)] += 1
            return []

    outcomes = await asyncio.gather(*(one(case) for case in cases))
    decided = [step for steps in outcomes for step in steps]
    for failure, times in failures.items():
        print(f"failed {times}×: {failure}")
    if not decided:
        return False
    return report(cases, decided, balanced=bool(arguments.utterances), least=arguments.min_accuracy) and not failures


if __name__ == "__main__":
    run(main())
