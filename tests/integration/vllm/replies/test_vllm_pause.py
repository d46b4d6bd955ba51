"""A prepared reply over the real engine: greedy, it is one reply, as nobody had cut it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from runtime.engines import Delta, Sampling
from runtime.engines.vllm.engine import VllmEngine
from runtime.text.prompt import Budgets, PromptRenderer
from tests.harness.scripted import Running, serving
from tests.harness.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

STORY = "Tell me a very long story about a lighthouse, and do not stop."
ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    (STORY, {}),
    ("What is the time?", {"repetition_penalty": 1.2}),
    ("Erzähl mir etwas über Möwen 🐦 – bitte!", {"stop": [" the"]}),
)
REPLY, REST = 40, 12
# What a prompt's tokens are computed to differs in its last bits from a reply's, and now and then two words are
# as likely as one another: so many of a reply's tokens are the most probable ones of all when it is scored in one go.
LIKELIEST = 0.85


class Recording:
    """The engine, and what each request asked and was told, in tokens."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine
        self.requests: list[tuple[list[int], list[int]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        told: list[int] = []
        self.requests.append((list(prompt), told))

        def note(delta: Delta) -> None:
            told.extend(delta.token_ids)
            on_delta(delta)

        await self._engine.generate(prompt, sampling, note, cache_salt)


def lent(running: Running) -> int:
    """Places of the engine that prepared replies have: none once they rest."""
    deployment = running.service.deployment
    assert deployment is not None
    assert deployment.chat is not None
    return deployment.chat.places.lent


def outcomes(running: Running) -> list[str]:
    """What became of replies that were prepared, for whoever wonders."""
    told = generate_latest(running.service.metrics.registry).decode()
    return [line for line in told.splitlines() if line.startswith("yap_prepared") and not line.endswith(" 0.0")]


async def likeliest(engine: VllmEngine, prompt: list[int], reply: list[int]) -> float:
    """The part of a reply's tokens that are the most probable ones where they stand."""
    scores = (await engine.score([*prompt, *reply]))[len(prompt) - 1 :]
    return sum(score.top_token == token for score, token in zip(scores, reply, strict=True)) / len(reply)


async def test_a_greedy_reply_is_one_reply_with_a_rest_and_without(engine: VllmEngine, chat_folder: Path) -> None:
    renderer = PromptRenderer(chat_folder, Budgets())
    recording = Recording(engine)
    limits: dict[str, Any] = {"ws_max_messages_per_window": 0, "ws_max_prepares_per_window": 0, "prepare_ttl_s": 60}
    async with (
        serving(
            recording,  # type: ignore[arg-type] - what the harness asks of its own engine is not asked here
            renderer=renderer,
            max_out=REPLY,
            cache_sharing="server",
            prepare_max_tokens=REST,
            places=16,  # as conftest.py starts it
            **limits,
        ) as running,
        running.client() as client,
    ):
        for number, (utterance, more) in enumerate(ASKED):
            asked = {"user_utterance": utterance, "sampling": {"temperature": 0, **more}, "history": []}
            plain = await client.turn(**asked, session_id=f"plain-{number}")
            for rests in (True, False):
                recording.requests.clear()
                await client.send(type="prepare", **asked, session_id=f"s{number}")
                if rests:
                    await eventually(lambda: bool(recording.requests) and lent(running) == 0)
                ready = await client.turn(**asked, session_id=f"s{number}")
                usage = ready[-1]["usage"]
                assert usage.get("prepared") is True, (number, rests, outcomes(running), recording.requests)
                assert ready[-1]["usage"]["prompt_tokens"] == plain[-1]["usage"]["prompt_tokens"]
                prompt, reply = recording.requests[0]
                if len(recording.requests) > 1:  # a stop may have ended it before its rest
                    ((_, before), (after, rest)) = recording.requests
                    assert after == [*prompt, *before], "what follows the rest is made behind all that was said"
                    assert REST <= len(before) < len(before) + len(rest) <= REPLY
                    reply = [*before, *rest]
                if "repetition_penalty" not in more:
                    assert await likeliest(engine, prompt, reply) >= LIKELIEST
        assert (await engine.load()).running == 0
