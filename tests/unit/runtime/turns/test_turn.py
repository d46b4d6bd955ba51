"""A turn, over a real socket: what comes, in which order, and that it ends in exactly one `done`."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from runtime.engines import EngineDeadError
from tests.harness.scripted import REPLY, ScriptedClassifier, ScriptedEngine, ScriptedRenderer, serving
from tests.harness.waiting import eventually

TEXT = "".join(REPLY)


def kinds(frames: list[dict[str, Any]]) -> list[str]:
    """Types in order, a run of `token` frames as one."""
    found: list[str] = []
    for frame in frames:
        if not (frame["type"] == "token" and found[-1:] == ["token"]):
            found.append(frame["type"])
    return found


async def test_a_turn_with_both_models_is_ack_toolcall_token_final_done() -> None:
    async with serving(classifier=ScriptedClassifier()) as running, running.client() as client:
        frames = await client.turn(user_utterance="hello there", request_id="r1")
    assert kinds(frames) == ["ack", "toolcall", "token", "final", "done"]
    assert all(frame["request_id"] == "r1" for frame in frames)
    assert frames[0]["for"] == "start"
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(frames[0]["now"])) < timedelta(seconds=10)
    assert frames[1] == {"type": "toolcall", "status": "no", "raw": [], "request_id": "r1"}
    assert "".join(frame["text"] for frame in frames if frame["type"] == "token") == TEXT
    assert frames[-2]["normalized_text"] == TEXT
    usage = frames[-1]["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["cached_tokens"] == 3
    assert usage["finish_reason"] == "stop"
    assert 0 <= usage["ttft_ms"] <= usage["duration_ms"]


async def test_chat_only_has_no_toolcall() -> None:
    async with serving() as running, running.client() as client:
        assert kinds(await client.turn(user_utterance="look")) == ["ack", "token", "final", "done"]


async def test_the_engine_is_roused_before_a_turn_s_request_and_for_nothing_else() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as running, running.client() as client:
        await client.turn(user_utterance="hello")
        assert engine.woken == [0]
        for message in ("ping", "warm_persona", "chat_prompt", "cancel"):
            await client.send(type=message, persona_text="x")
            await client.receive()
        assert engine.woken == [0]
        await client.send(type="followup", analysis_text="a cat")
        await client.until("done")
        assert engine.woken == [0, 1]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    ("utterance", "tools"),
    [
        ("hello", []),
        ("play_music", ["play_music"]),
        ("take_screenshot", ["take_screenshot"]),
        ("play_music and take_screenshot", ["take_screenshot", "play_music"]),
    ],
)
async def test_every_tool_that_is_asked_for_is_told_and_the_screen_s_prefix_is_the_screenshot_s(
    chat: bool, utterance: str, tools: list[str]
) -> None:
    engine = ScriptedEngine()
    classifier = ScriptedClassifier(tools=("take_screenshot", "play_music"))
    async with serving(engine, classifier, chat=chat) as running, running.client() as client:
        frames = await client.turn(user_utterance=utterance, check_screen_prefix="SCREEN:")
        assert kinds(frames) == ["ack", "toolcall", *(["token", "final"] if chat else []), "done"]
        assert frames[1]["status"] == ("yes" if tools else "no")
        assert [call["name"] for call in frames[1]["raw"]] == tools
        likely = [call["probability"] for call in frames[1]["raw"]]
        assert likely == sorted(likely, reverse=True)
    prefixed = any("SCREEN:" in prompt for prompt in engine.prompts)
    assert prefixed == (chat and "take_screenshot" in tools)


async def test_tool_only_ends_after_the_toolcall() -> None:
    async with serving(classifier=ScriptedClassifier(), chat=False) as running, running.client() as client:
        frames = await client.turn(user_utterance="look at this", persona_text="ignored")
        assert kinds(frames) == ["ack", "toolcall", "done"]
        assert frames[0]["chat_prompt"] is False
        assert frames[1]["raw"] == [{"name": "take_screenshot", "probability": 0.9}]
        assert frames[2]["usage"]["ttft_ms"] is None
        for message in ("followup", "warm_persona", "warm_history", "chat_prompt"):
            await client.send(type=message, analysis_text="x", persona_text="x", history=[])
            assert (await client.receive())["error_code"] == "chat_not_deployed"


async def test_yes_starts_again_behind_the_prefix_and_still_streams_the_reply() -> None:
    engine = ScriptedEngine(pause=0.02)
    async with serving(engine, ScriptedClassifier(pause=0.02)) as running, running.client() as client:
        frames = await client.turn(user_utterance="look here", check_screen_prefix="SCREEN:")
        assert kinds(frames) == ["ack", "toolcall", "token", "final", "done"]
        assert frames[1]["status"] == "yes"
        assert frames[-2]["normalized_text"] == TEXT
    assert engine.prompts[0][-3:] == ["[user]", "look", "here"]
    assert engine.prompts[1][-4:] == ["[user]", "SCREEN:", "look", "here"]
    assert engine.aborts == 1
    assert not engine.held


async def test_prefill_begins_before_the_decision_and_no_token_precedes_it() -> None:
    engine = ScriptedEngine()
    classifier = ScriptedClassifier(gate=asyncio.Event())
    async with serving(engine, classifier) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="hello")
        assert (await client.receive())["type"] == "ack"
        await eventually(lambda: engine.prompts)
        assert classifier.gate is not None
        classifier.gate.set()
        assert kinds(await client.until("done")) == ["toolcall", "token", "final", "done"]
        assert len(engine.prompts) == 1


async def test_the_classifier_sees_the_users_turns_and_the_utterance_once() -> None:
    classifier = ScriptedClassifier()
    async with serving(classifier=classifier) as running, running.client() as client:
        history = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
        await client.turn(user_utterance="three", history=history)
        await client.turn(user_utterance="four")
    assert classifier.asked == [(["one"], "three"), (["one", "three"], "four")]


async def test_an_undecided_classifier_means_no() -> None:
    async with serving(classifier=ScriptedClassifier(pause=5), tool_timeout_s=0.05) as running:
        async with running.client() as client:
            frames = await client.turn(user_utterance="look")
        assert frames[1]["status"] == "no"
        assert running.classifier is not None
        assert running.classifier.running == 0


async def test_a_failing_classifier_means_no_beside_a_chat_and_a_failed_turn_alone() -> None:
    broken = ScriptedClassifier(error=RuntimeError("secret"))
    async with serving(classifier=broken) as running, running.client() as client:
        frames = await client.turn(user_utterance="look")
        assert kinds(frames) == ["ack", "toolcall", "token", "final", "done"]
        assert frames[1]["status"] == "no"
    async with serving(classifier=broken, chat=False) as running, running.client() as client:
        frames = await client.turn(user_utterance="look")
        assert kinds(frames) == ["ack", "error", "done"]
        assert frames[-1]["failed"] is True


async def test_a_failing_engine_gives_an_error_without_its_text_and_a_failed_done() -> None:
    async with serving(ScriptedEngine(fail_after=2)) as running, running.client() as client:
        frames = await client.turn(user_utterance="hello", request_id=7)
        assert kinds(frames) == ["ack", "token", "error", "done"]
        assert frames[-2]["error_code"] == "generation_failed"
        assert "secret" not in str(frames)
        assert frames[-1] == {"type": "done", "failed": True, "request_id": 7}
        running.engine.fail_after = None
        assert kinds(await client.turn(user_utterance="again")) == ["ack", "token", "final", "done"]


async def test_a_failing_renderer_gives_a_failed_turn() -> None:
    renderer = ScriptedRenderer(error=ValueError("secret"))
    async with serving(renderer=renderer, classifier=ScriptedClassifier(pause=0.02)) as running:
        async with running.client() as client:
            assert kinds(await client.turn(user_utterance="hello")) == ["ack", "error", "done"]
        assert running.classifier is not None
        assert running.classifier.running == 0


async def test_a_turn_that_takes_too_long_times_out_and_the_engine_lets_go() -> None:
    engine = ScriptedEngine(pause=0.03, reply=["word "] * 1000)
    async with serving(engine, gen_timeout_s=0.6) as running, running.client() as client:
        frames = await client.turn(user_utterance="hello")
        assert kinds(frames) == ["ack", "token", "error", "done"]
        assert frames[-2]["error_code"] == "generation_timeout"
        assert frames[-1]["failed"] is True
        assert not engine.held


async def test_cancel_ends_the_turn_once_the_engine_has_let_go() -> None:
    engine = ScriptedEngine(pause=0.01, reply=["word "] * 1000, abort_seconds=0.05)
    async with serving(engine) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="hello")
        await client.until("token")
        await client.send(type="cancel")
        frames = await client.until("done")
        assert frames[-1] == {"type": "done", "cancelled": True}
        assert not engine.held
        assert await client.silent()


async def test_each_cancel_is_answered_by_one_done_also_when_nothing_runs() -> None:
    engine = ScriptedEngine(pause=0.01, reply=["word "] * 1000, abort_seconds=0.02)
    async with serving(engine) as running, running.client() as client:
        await client.send(type="cancel", request_id="c0")
        assert await client.receive() == {"type": "done", "cancelled": True, "request_id": "c0"}
        await client.send(type="start", session_id="s1", user_utterance="hello", request_id="r1")
        await client.until("token")
        for number in range(3):
            await client.send(type="cancel", request_id=f"c{number}")
        frames = [frame for _ in range(3) for frame in await client.until("done")]
        dones = [frame for frame in frames if frame["type"] == "done"]
        assert [done["request_id"] for done in dones] == ["c0", "c1", "c2"]
        assert await client.silent()


async def test_a_cancel_right_behind_its_start_cancels_it() -> None:
    async with serving(ScriptedEngine(pause=0.01), ScriptedClassifier()) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="hello", request_id="r1")
        await client.send(type="cancel")
        frames = await client.until("done")
        assert frames[-1]["cancelled"] is True
        assert frames[-1]["request_id"] == "r1"
        assert not running.engine.held


async def test_cancel_reaches_the_classifier_too() -> None:
    classifier = ScriptedClassifier(pause=5)
    async with serving(classifier=classifier) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="look")
        await client.until("ack")
        await eventually(lambda: classifier.running)
        await client.send(type="cancel")
        assert kinds(await client.until("done")) == ["done"]
        assert classifier.running == 0
        assert not running.engine.held


async def test_on_barge_in_the_old_done_precedes_the_new_ack_and_nothing_old_follows() -> None:
    engine = ScriptedEngine(pause=0.005, abort_seconds=0.05, script=lambda words: [f"{words[-1]} "] * 40)
    async with serving(engine) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="old", request_id="old")
        await client.until("token")
        await client.send(type="start", session_id="s1", user_utterance="new", request_id="new")
        frames = await client.until("done")
        assert frames[-1] == {"type": "done", "cancelled": True, "request_id": "old"}
        assert all(frame["type"] == "token" for frame in frames[:-1])
        frames = await client.until("done")
        assert kinds(frames) == ["ack", "token", "final", "done"]
        assert all(frame["request_id"] == "new" for frame in frames)
        assert "old" not in frames[-2]["normalized_text"]
        assert engine.most_held == 1


async def test_a_dead_engine_fails_the_turn_and_ends_the_service() -> None:
    async with serving(ScriptedEngine(pause=0.02, reply=["word "] * 100)) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="hello")
        await client.until("token")
        running.engine.dead = True
        frames = await client.until("done")
        assert kinds(frames)[-2:] == ["error", "done"]
        assert frames[-1]["failed"] is True
        await asyncio.wait((running.service.ended,), timeout=4)
        assert isinstance(running.service.ended.exception(), EngineDeadError)


async def test_sampling_reaches_the_engine_and_stays_the_sessions_default() -> None:
    async with serving(max_out=33) as running, running.client() as client:
        await client.turn(user_utterance="a", sampling={"temperature": "0.5"}, top_k=7)
        await client.turn(user_utterance="b", sampling={"top_p": 0.7})
        await client.turn(user_utterance="c", session_id="other")
    first, second, third = running.engine.samplings
    assert (first.temperature, first.top_k, first.top_p, first.max_tokens) == (0.5, 7, 0.95, 33)
    assert (second.temperature, second.top_k, second.top_p) == (0.5, 7, 0.7)
    assert (third.temperature, third.top_k) == (0.8, 30)
    assert isinstance(first.top_k, int)
