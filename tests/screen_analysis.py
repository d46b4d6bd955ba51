#!/usr/bin/env python3
"""The screenshot path: a request to look, the decision `yes`, the reply, then a `followup` with what was seen."""

from __future__ import annotations

from client import TurnRecord, connect, parser, read_options
from client.command import run
from prompts.detailed import prompt_for

REQUEST = "Can you take a look at my screen and tell me what you think?"
ANALYSIS = (
    "The screen shows a drawing of a small red house under two tall trees, with a paper boat on a pond in front of it. "
    "The colours are bright and the lines are made by a child's hand."
)


async def main() -> bool:
    arguments_parser = parser(__doc__.splitlines()[0])
    arguments_parser.add_argument("utterance", nargs="?", default=REQUEST, help="what the user says")
    arguments_parser.add_argument("--analysis", default=ANALYSIS, help="what the client saw on the screenshot")
    arguments = arguments_parser.parse_args()
    options = read_options(arguments)
    persona = prompt_for(options.gender, options.personality)
    async with connect(options, persona=persona) as talk:
        asked = await TurnRecord(talk.say(arguments.utterance)).whole()
        status = asked.tool.status if asked.tool else "absent"
        print(f"user       {arguments.utterance}\ntoolcall   {status}\nassistant  {asked.text}\n{asked.report()}")
        ok = asked.ok and status == "yes"
        if status != "yes":
            print("failed: expected the decision yes; is a tool model deployed?")
        if asked.ok and options.chat_prompt:
            answered = await TurnRecord(talk.followup(arguments.analysis)).whole()
            print(f"analysis   {arguments.analysis}\nassistant  {answered.text}\n{answered.report()}")
            ok = ok and answered.ok and answered.tool is None
    return ok


if __name__ == "__main__":
    run(main())
