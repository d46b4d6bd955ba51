"""What the log says of a turn: one event an outcome where that is wanted, and nothing of what was said."""

from __future__ import annotations

import json

import pytest
from structlog.testing import capture_logs

from tests.harness.scripted import ScriptedEngine, serving

WORDS = ("secretpersona", "secretutterance", "secretreply")


@pytest.mark.parametrize("outcome", ["done", "failed", "timeout", "cancelled"])
async def test_each_end_is_one_event(outcome: str) -> None:
    engine = ScriptedEngine(reply=["secretreply "] * 5)
    engine.fail_after = 1 if outcome == "failed" else None
    engine.pause = 0.2 if outcome in {"timeout", "cancelled"} else 0
    with capture_logs() as events:
        async with serving(engine, log_turns=True, gen_timeout_s=0.3) as running, running.client() as client:
            await client.send(
                type="start", session_id="s1", persona_text="secretpersona", user_utterance="secretutterance"
            )
            if outcome == "cancelled":
                await client.until("token")
                await client.send(type="cancel")
            await client.until("done")
    turns = [event for event in events if event["event"] == "turn"]
    assert [event["outcome"] for event in turns] == [outcome]
    assert turns[0]["prompt_tokens"] > 0
    assert turns[0]["key"]
    assert not any(word in json.dumps(turns) for word in WORDS)
    if outcome == "timeout":
        assert [event["seconds"] for event in events if event["event"] == "turn_timed_out"] == [0.3]


async def test_turns_are_not_logged_by_default() -> None:
    with capture_logs() as events:
        async with serving() as running, running.client() as client:
            await client.turn(user_utterance="hello")
    assert not [event for event in events if event["event"] == "turn"]
