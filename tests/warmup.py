#!/usr/bin/env python3
"""One turn: every frame with its time, then the metrics. The first thing to run against a new server."""

from __future__ import annotations

from client import TurnRecord, connect, parser, plain, read_options
from client.command import run
from prompts.detailed import prompt_for
from yap_client import Talk


async def one_turn(talk: Talk, label: str, utterance: str) -> bool:
    # An empty history makes the second turn the same work as the first.
    turn = TurnRecord(talk.say(utterance, history=[]))
    async for event in turn:
        elapsed = (turn.clock() - turn.started) * 1000
        print(f"{label}{elapsed:8.1f} ms  {plain(event)}")
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
    labels = ["first  ", "second "] if arguments.double_ttfb else [""]
    async with connect(options, persona=persona) as talk:
        results = [await one_turn(talk, label, arguments.utterance) for label in labels]
    return all(results)


if __name__ == "__main__":
    run(main())
