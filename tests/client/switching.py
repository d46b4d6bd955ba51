"""Change persona in the middle of a conversation, keep the history: what `personality.py` and `gender.py` share."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from .connection import connect
from .frames import Ack
from .options import Options


async def switch_personas(
    options: Options, steps: Sequence[tuple[str, str, str]], utterances: Sequence[str], delay: float
) -> bool:
    """Hold one conversation; before each turn after the first, replace the persona with `chat_prompt`.

    Args:
        steps: (gender, personality, system prompt) of each turn.
        utterances: what the user says, repeated as needed.
        delay: seconds between turns.
    """
    gender, personality, prompt = steps[0]
    fields = options.start_fields(f"switch-{uuid.uuid4().hex[:8]}", prompt)
    fields.update(gender=gender, personality=personality)
    ok = True
    async with connect(options) as client:
        for number, (gender, personality, prompt) in enumerate(steps):
            if number:
                await asyncio.sleep(delay)
                await client.send("chat_prompt", persona_text=prompt, gender=gender, persona_style=personality)
                ack = await client.until("ack")
                assert isinstance(ack, Ack)
                print(f"    switched to {gender} {personality}: {ack.code} {ack.raw.get('message', '')}")
                ok = ok and ack.ok
                for name in ("gender", "personality", "chat_prompt"):
                    fields.pop(name, None)
            utterance = utterances[number % len(utterances)]
            turn = await client.start(**fields, user_utterance=utterance)
            print(f"{number + 1:2}  user       {utterance}")
            print(f"    {gender} {personality:10}  {turn.text}")
            print(f"    {turn.summary()}")
            if turn.error:
                print(f"    failed: {turn.error.code}: {turn.error.message}")
            ok = ok and turn.ok
        await client.end()
    return ok
