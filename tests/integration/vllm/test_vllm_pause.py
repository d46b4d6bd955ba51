"""A prepared reply over the real engine: greedy, it is the reply that nobody prepared, beyond its rest too."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from runtime.engines.vllm.engine import VllmEngine
from runtime.text.prompt import Budgets, PromptRenderer
from tests.harness.scripted import Running, serving
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

STORY = "Tell me a very long story about a lighthouse, and do not stop."
UTTERANCES = (STORY, "What is the time?", "Erzähl mir etwas über Möwen 🐦 – bitte!")
REPLY, REST = 40, 12
# Characters: some more than the tokens up to the rest have.
SEEN = 64


def lent(running: Running) -> int:
    """Places of the engine that prepared replies have: none once they rest."""
    deployment = running.service.deployment
    assert deployment is not None
    assert deployment.chat is not None
    return deployment.chat.places.lent


async def test_a_greedy_reply_is_the_same_with_a_rest_and_without(engine: VllmEngine, chat_folder: Path) -> None:
    renderer = PromptRenderer(chat_folder, Budgets())
    limits: dict[str, Any] = {"ws_max_messages_per_window": 0, "ws_max_prepares_per_window": 0, "prepare_ttl_s": 60}
    async with (
        serving(
            engine,  # type: ignore[arg-type] - what the harness asks of its own engine is not asked here
            renderer=renderer,
            max_out=REPLY,
            cache_sharing="server",
            prepare_max_tokens=REST,
            **limits,
        ) as running,
        running.client() as client,
    ):
        for number, utterance in enumerate(UTTERANCES):
            for more in ({}, {"repetition_penalty": 1.2}, {"stop": [" the"]}):
                asked = {"user_utterance": utterance, "sampling": {"temperature": 0, **more}, "history": []}
                plain = await client.turn(**asked, session_id=f"plain-{number}")
                for rests in (True, False):
                    await client.send(type="prepare", **asked, session_id=f"s{number}")
                    if rests:
                        await asyncio.sleep(0.05)
                        await eventually(lambda: lent(running) == 0)
                    ready = await client.turn(**asked, session_id=f"s{number}")
                    # Beyond the rest, and no further: what a prompt's tokens are computed to differs in its last bits
                    # from what a reply's are, and sooner or later two words are as likely as one another.
                    assert ready[-2]["normalized_text"][:SEEN] == plain[-2]["normalized_text"][:SEEN]
                    assert ready[-1]["usage"]["prepared"] is True
                    assert ready[-1]["usage"]["prompt_tokens"] == plain[-1]["usage"]["prompt_tokens"]
        assert (await engine.load()).running == 0
