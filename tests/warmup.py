#!/usr/bin/env python3
"""One turn: every frame with its time, then the metrics. The first thing to run against a new server."""

from __future__ import annotations

import uuid

from client.command import run
from prompts.detailed import prompt_for

from client import Client, TurnRecord, connect, parser, read_options


async def one_turn(client: Client, label: str, fields: dict) -> bool:
    turn = TurnRecord()
    await client.send("start", **fields)
    async for frame in client.frames(turn):
        elapsed = (turn.clock() - turn.started) * 1000
        print(f"{label}{elapsed:8.1f} ms  {frame.raw}")
    print(turn.report(label))
    return turn.ok


async def main() -> bool:
    arguments_parser = parser(__doc__.splitlines()[0])
    arguments_parser.add_argument(
        "utterance", nargs="?", default="Hey, how is your evening going?", help="what the user says"
    )
    arguments_parser.add_argument("--double-ttfb", action="store_true", help="send the same start twice, one socket")
    arguments = arguments_parser.parse_args()
    options = read_options(arguments)
    persona = prompt_for(options.gender, options.personality)
    fields = options.start_fields(f"warmup-{uuid.uuid4().hex[:8]}", persona)
    fields["user_utterance"] = arguments.utterance
    # An empty history makes the second turn the same work as the first.
    fields["history"] = []
    labels = ["first  ", "second "] if arguments.double_ttfb else [""]
    async with connect(options) as client:
        results = [await one_turn(client, label, fields) for label in labels]
        await client.end()
    return all(results)


if __name__ == "__main__":
    run(main())
