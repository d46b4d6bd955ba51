#!/usr/bin/env python3
"""Switch the persona's style in mid-conversation with `chat_prompt`; the history stays."""

from __future__ import annotations

from itertools import cycle, islice

from client import parser, read_options, whole
from client.command import run
from client.switching import switch_personas
from messages.conversation import TURNS
from prompts.detailed import PERSONAS, style_of


async def main() -> bool:
    arguments_parser = parser(__doc__.splitlines()[0])
    arguments_parser.add_argument("--switches", type=whole, metavar="N", default=5, help="how often to switch")
    arguments_parser.add_argument("--delay", type=float, metavar="SECONDS", default=2.0, help="pause between turns")
    arguments = arguments_parser.parse_args()
    personas = [(gender, style_of(key), prompt) for key, (gender, prompt) in PERSONAS.items()]
    steps = list(islice(cycle(personas), arguments.switches + 1))
    return await switch_personas(read_options(arguments), steps, TURNS, arguments.delay)


if __name__ == "__main__":
    run(main())
