"""Changes of persona in the middle of a conversation: what `personality.py` and `gender.py` share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from yap_client import RateLimitError, RefusedError, Talk

from .options import Options, connect
from .turn import TurnRecord

LIMITED = 429


async def switch_personas(
    options: Options, steps: Sequence[tuple[str, str, str]], utterances: Sequence[str], delay: float
) -> bool:
    """Hold one conversation; before each turn after the first, replace the persona with `chat_prompt`.

    Without system prompts there is nothing to replace; gender and style then change with the `start` itself.

    Args:
        steps: (gender, personality, system prompt) of each turn.
        utterances: what the user says, repeated as needed.
        delay: seconds between turns.
    """
    ok = True
    async with connect(options) as talk:
        for number, (gender, style, prompt) in enumerate(steps):
            if number and delay:
                print(f"    waiting {delay:g} s, as a listener would (--delay)", flush=True)
                await asyncio.sleep(delay)
            utterance = utterances[number % len(utterances)]
            if number and options.chat_prompt:
                ok = await set_persona(talk, gender, style, prompt) and ok
                record = TurnRecord(talk.say(utterance))
            else:
                persona = prompt if options.chat_prompt else None
                record = TurnRecord(talk.say(utterance, gender=gender, style=style, persona=persona))
            turn = await record.whole()
            print(f"{number + 1:2}  user       {utterance}")
            print(f"    {gender} {style:10}  {turn.text}")
            print(turn.report("    "))
            ok = ok and turn.ok
    return ok


async def set_persona(talk: Talk, gender: str, style: str, prompt: str) -> bool:
    """Replace the session's persona and print the answer; waits as long as the server's limit for updates says."""
    while True:
        try:
            answer = await talk.set_persona(prompt, gender=gender, style=style)
        except RateLimitError as limited:
            print(f"    switch to {gender} {style}: {LIMITED} {limited.message}", flush=True)
            print(
                f"    waiting {limited.retry_in:g} s: the server takes so many new personas a minute "
                "(CHAT_PROMPT_UPDATE_MAX_PER_WINDOW)",
                flush=True,
            )
            await asyncio.sleep(limited.retry_in)
        except RefusedError as refused:
            print(f"    switch to {gender} {style}: {refused}", flush=True)
            return False
        else:
            said = f"{answer.code} {answer.message}" if answer is not None else "with the next turn"
            print(f"    switch to {gender} {style}: {said}", flush=True)
            return True
