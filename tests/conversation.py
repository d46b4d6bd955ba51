#!/usr/bin/env python3
"""Ten fixed turns with growing history: what the prefix cache saves, turn by turn."""

from __future__ import annotations

from client import TurnRecord, connect, parser, read_options
from client.command import run
from messages.conversation import TURNS
from prompts.detailed import prompt_for


async def main() -> bool:
    options = read_options(parser(__doc__.splitlines()[0]).parse_args())
    persona = prompt_for(options.gender, options.personality)
    ok = True
    cached = prompted = last = 0
    async with connect(options, persona=persona) as talk:
        for number, utterance in enumerate(TURNS, 1):
            turn = await TurnRecord(talk.say(utterance)).whole()
            print(f"{number:2}  user       {utterance}")
            print(f"    assistant  {turn.text}")
            print(turn.report("    "))
            usage = turn.usage
            cached += usage.cached_tokens
            prompted += usage.prompt_tokens
            if usage.prompt_tokens < last:  # the history only grows, so the prompt shrinks for one reason
                print("    the oldest turns no longer fit and were left out")
            last = usage.prompt_tokens or last
            ok = ok and turn.ok
    if prompted:
        print(f"cached {cached} of {prompted} prompt tokens ({cached / prompted:.0%})")
    return ok


if __name__ == "__main__":
    run(main())
