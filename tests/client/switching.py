"""Changes of persona in the middle of a conversation: what `personality.py` and `gender.py` share."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from .connection import Client, connect
from .frames import Ack
from .options import Options

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
    session = {"session_id": f"switch-{uuid.uuid4().hex[:8]}"}
    if options.sampling:
        session["sampling"] = options.sampling
    ok = True
    async with connect(options) as client:
        for number, (gender, style, prompt) in enumerate(steps):
            fields = dict(session)
            if number and delay:
                print(f"    waiting {delay:g} s, as a listener would (--delay)", flush=True)
                await asyncio.sleep(delay)
            if number and options.chat_prompt:
                ok = await set_persona(client, gender, style, prompt) and ok
            else:
                fields.update(gender=gender, personality=style)
                if options.chat_prompt:
                    fields["chat_prompt"] = prompt
            utterance = utterances[number % len(utterances)]
            turn = await client.start(**fields, user_utterance=utterance)
            print(f"{number + 1:2}  user       {utterance}")
            print(f"    {gender} {style:10}  {turn.text}")
            print(turn.report("    "))
            ok = ok and turn.ok
        await client.end()
    return ok


async def set_persona(client: Client, gender: str, style: str, prompt: str) -> bool:
    """Replace the session's persona and print the answer; waits as long as the server's limit for updates says.

    Raises:
        ClientError: the server takes no persona at all.
    """
    while True:
        await client.send("chat_prompt", persona_text=prompt, gender=gender, persona_style=style)
        answer = await client.until("ack")
        assert isinstance(answer, Ack)
        print(f"    switch to {gender} {style}: {answer.code} {answer.raw.get('message', '')}", flush=True)
        if answer.code != LIMITED:
            return answer.ok
        wait = answer.raw.get("retry_in", 1)
        print(
            f"    waiting {wait} s: the server takes so many new personas a minute (CHAT_PROMPT_UPDATE_MAX_PER_WINDOW)",
            flush=True,
        )
        await asyncio.sleep(wait)
