#!/usr/bin/env python3
"""Switch between a woman's and a man's persona in mid-conversation; the history stays."""

from __future__ import annotations

from itertools import cycle, islice

from client import parser, read_options, whole
from client.command import run
from client.switching import switch_personas
from messages.conversation import TURNS
from prompts.detailed import PERSONAS, style_of


async def main() -> bool:
    arguments_parser = parser(__doc__.splitlines()[0])
    arguments_parser.add_argument("--switches", type=whole, metavar="N", default=3, help="how often to switch")
    arguments_parser.add_argument("--delay", type=float, metavar="SECONDS", default=1.0, help="pause between turns")
    arguments = arguments_parser.parse_args()
    pair = [(PERSONAS[key][0], style_of(key), PERSONAS[key][1]) for key in ("anna_wholesome", "mark_wholesome")]
    steps = list(islice(cycle(pair), arguments.switches + 1))
    return await switch_personas(read_options(arguments), steps, TURNS, arguments.delay)


if __name__ == "__main__":
    run(main())
