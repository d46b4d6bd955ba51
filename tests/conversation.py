#!/usr/bin/env python3
"""Ten fixed turns with growing history: what the prefix cache saves, turn by turn."""

from __future__ import annotations

import uuid

from client.command import run
from messages.conversation import TURNS
from prompts.detailed import prompt_for

from client import connect, parser, read_options


async def main() -> bool:
    options = read_options(parser(__doc__.splitlines()[0]).parse_args())
    persona = prompt_for(options.gender, options.personality)
    fields = options.start_fields(f"conversation-{uuid.uuid4().hex[:8]}", persona)
    ok = True
    cached = prompted = last = 0
    async with connect(options) as client:
        for number, utterance in enumerate(TURNS, 1):
            turn = await client.start(**fields, user_utterance=utterance)
            fields.pop("chat_prompt", None)  # the session keeps it
            print(f"{number:2}  user       {utterance}")
            print(f"    assistant  {turn.text}")
            print(turn.report("    "))
            usage = turn.done.usage if turn.done else {}
            cached += usage.get("cached_tokens", 0)
            prompted += usage.get("prompt_tokens", 0)
            if usage.get("prompt_tokens", 0) < last:  # the history only grows, so the prompt shrinks for one reason
                print("    the oldest turns no longer fit and were left out")
            last = usage.get("prompt_tokens", last)
            ok = ok and turn.ok
        await client.end()
    if prompted:
        print(f"cached {cached} of {prompted} prompt tokens ({cached / prompted:.0%})")
    return ok


if __name__ == "__main__":
    run(main())
