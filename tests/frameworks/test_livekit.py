"""`yap_client.livekit` in real agent sessions, against a server in a process of its own."""

from __future__ import annotations

import asyncio
import random
import re
import time

import pytest
from livekit.agents import (
    Agent,
    APIConnectionError,
    APIConnectOptions,
    APIStatusError,
    RunContext,
    function_tool,
)
from livekit.agents.llm import ChatContext, FallbackAdapter, ImageContent
from livekit.agents.metrics import LLMMetrics
from livekit.agents.voice.audio_recognition import _EndOfTurnInfo, _EndOfTurnMetrics, _PreemptiveGenerationInfo

from tests.frameworks import readme
from tests.frameworks.livekit_session import conversing
from tests.frameworks.scripted_process import KEY, ScriptedProcess
from tests.harness.waiting import eventually
from yap_client import Backoff
from yap_client.livekit import LLM

PERSONA = "You are Mia."
ONCE = APIConnectOptions(max_retry=0, timeout=10)


def whole(word: str) -> str:
    return " ".join(f"{word}-{n}" for n in range(12)).capitalize()


def make(scripted: ScriptedProcess, **values) -> LLM:
    return LLM(**{"url": scripted.url, "api_key": KEY, "connect_options": {"backoff": Backoff(first=0.01)}, **values})


def context(*said: tuple[str, str], persona: str = PERSONA) -> ChatContext:
    made = ChatContext.empty()
    if persona:
        made.add_message(role="system", content=persona)
    for role, content in said:
        made.add_message(role=role, content=content)  # type: ignore[arg-type]
    return made


async def test_persona_goes_once_and_history_never(scripted: ScriptedProcess) -> None:
    async with conversing(make(scripted), Agent(instructions=PERSONA)) as (session, text):
        for word in ("one", "two", "three"):
            await session.generate_reply(user_input=f"{word} is said")
        assert "".join(part for _, part in text.said) == whole("one") + whole("two") + whole("three")
    state = scripted.state()
    assert state.starts == ["persona", "", ""]
    assert state.prompts[2] == (
        f"[system] {PERSONA} [user] one is said [assistant] {whole('one')} [user] two is said"
        f" [assistant] {whole('two')} [user] three is said"
    )
    assert state.connections == state.held == 0


async def test_usage_and_the_time_to_the_first_token_reach_the_metrics(scripted: ScriptedProcess) -> None:
    model = make(scripted)
    metrics: list[LLMMetrics] = []
    model.on("metrics_collected", metrics.append)
    async with model.chat(chat_ctx=context(("user", "think it over"))) as stream:
        response = await stream.collect()
    await model.aclose()
    assert response.text == "Spoken-0 spoken-1"
    (one,) = metrics
    assert one.ttft > 0
    assert one.prompt_tokens == len(scripted.state().prompts[0].split())
    assert one.prompt_cached_tokens == 3
    assert one.completion_tokens == one.reasoning_tokens + 2
    assert one.total_tokens == one.prompt_tokens + one.completion_tokens
    assert one.metadata.model_provider == "yap"


async def test_nothing_of_a_turn_follows_its_interruption_in_200_turns(scripted: ScriptedProcess) -> None:
    draw = random.Random(19)
    async with conversing(make(scripted), Agent(instructions=PERSONA)) as (session, text):
        for turn in range(200):
            text.turn = turn
            handle = session.generate_reply(user_input=f"t{turn} is said")
            pieces = draw.choice((0, 0, 1, 2, 5, 99))
            await text.until(pieces, handle)
            if not pieces:
                await asyncio.sleep(draw.choice((0, 0, 0.002, 0.005)))
            handle.interrupt()
            await handle
        text.turn = 200
        await session.generate_reply(user_input="t200 is said")
        noted = [f"[{each.role}] {each.text_content}" for each in session.history.messages() if each.role != "system"]
    for turn, part in text.said:
        assert {int(number) for number in re.findall(r"[Tt](\d+)-\d+", part)} <= {turn}
    assert "".join(part for turn, part in text.said if turn == 200) == whole("t200")
    state = scripted.state()
    asked = " ".join(" ".join([f"[system] {PERSONA}", *noted[:-1]]).split())
    assert state.prompts[-1] == asked
    assert all(asked.startswith(prompt.rpartition("[user]")[0].strip()) for prompt in state.prompts[-20:])
    assert state.aborts > 0
    assert state.connections == state.held == 0


async def test_a_tool_decision_becomes_a_function_call_and_its_result_a_followup(scripted: ScriptedProcess) -> None:
    calls: list[str] = []

    @function_tool
    async def take_screenshot(ctx: RunContext) -> str:
        """Look at the screen."""
        calls.append(ctx.function_call.name)
        return "cat"

    model = make(scripted, screen_checked_prefix="(saw)")
    async with conversing(model, Agent(instructions=PERSONA, tools=[take_screenshot])) as (session, text):
        await session.generate_reply(user_input="take_screenshot now")
        await session.generate_reply(user_input="and then")
        said = "".join(part for _, part in text.said)
    assert calls == ["take_screenshot"]
    assert said.startswith("take_screenshot-0 ")
    assert "Cat-0 cat-1" in said
    state = scripted.state()
    assert state.starts == ["persona", ""]
    assert state.prompts[1].endswith("[user] (look) take_screenshot now")
    assert state.prompts[2].endswith("take_screenshot-11 [user] (saw) cat")
    assert state.prompts[3].endswith(f"[user] (saw) cat [assistant] {whole('cat')} [user] and then")


@pytest.mark.parametrize("choice", ["none", "auto"])
async def test_a_tool_that_is_not_to_be_called_is_not(scripted: ScriptedProcess, choice) -> None:
    @function_tool
    async def play_music() -> None:
        """Play."""

    @function_tool
    async def take_screenshot() -> None:
        """Look."""

    model = make(scripted)
    offered = [play_music, take_screenshot] if choice == "none" else [play_music]
    asked = context(("user", "take_screenshot now"))
    async with model.chat(chat_ctx=asked, tools=offered, tool_choice=choice) as stream:
        response = await stream.collect()
    await model.aclose()
    assert response.tool_calls == []
    assert response.text.startswith("take_screenshot-0")


async def test_many_cancelled_duplicates_are_cheap_and_leave_nothing(scripted: ScriptedProcess) -> None:
    """As preemptive generation does it: a reply for each transcript, and all but the last are given up."""
    draw = random.Random(5)
    model = make(scripted)
    said: list[tuple[str, str]] = []
    for turn in range(10):
        words = f"w{turn} and so on and on".split()
        for count in range(1, len(words)):
            stream = model.chat(chat_ctx=context(*said, ("user", " ".join(words[:count]))))
            if draw.random() < 0.7:
                await anext(stream, None) if draw.random() < 0.5 else await asyncio.sleep(draw.choice((0, 0.001, 0.01)))
            # The next one is asked for before this one has ended, as a new task is started before the old one is told.
            closing = asyncio.ensure_future(stream.aclose())
            if draw.random() < 0.5:
                await closing
        said.append(("user", " ".join(words)))
        async with model.chat(chat_ctx=context(*said)) as stream:
            said.append(("assistant", (await stream.collect()).text))
        assert said[-1] == ("assistant", whole(f"w{turn}"))
        state = scripted.state()
        expected = " ".join(f"[{role}] {content}" for role, content in said[:-1])
        assert state.prompts[-1] == f"[system] {PERSONA} {expected}"
    assert state.connections == 1
    assert state.held == 0
    await model.aclose()


@pytest.mark.parametrize("wait", [0.0, 0.02, 0.2])
async def test_preemptive_generation_of_a_session(scripted: ScriptedProcess, wait: float) -> None:
    """A reply to each transcript, and the last one is taken where the transcript has not changed."""
    async with conversing(make(scripted), Agent(instructions=PERSONA)) as (session, text):
        activity = session._activity
        assert activity is not None
        for turn in range(3):
            for heard in (f"w{turn} and", f"w{turn} and so", f"w{turn} and so on"):
                activity.on_preemptive_generation(_PreemptiveGenerationInfo(heard, 1.0, time.time()))
                await asyncio.sleep(wait)
            spoken = len(text.said)
            metrics = _EndOfTurnMetrics(None, None, None, None)
            assert activity.on_end_of_turn(_EndOfTurnInfo(False, f"w{turn} and so on", 1.0, metrics))
            await eventually(lambda: "".join(part for _, part in text.said[spoken:]) == whole(f"w{turn}"))  # noqa: B023
            await eventually(lambda: session.agent_state == "listening")
    said = " ".join(f"[user] w{n} and so on [assistant] {whole(f'w{n}')}" for n in range(2))
    state = scripted.state()
    assert state.prompts[-1] == f"[system] {PERSONA} {said} [user] w2 and so on"
    assert state.held == 0
    assert len(state.prompts) <= 9


async def test_a_stream_that_is_closed_ends_the_turn_in_the_engine(scripted: ScriptedProcess) -> None:
    model = make(scripted)
    aborts = scripted.state().aborts
    async with model.chat(chat_ctx=context(("user", "long is said"))) as stream:
        await anext(stream)
        assert scripted.state().held == 1
    assert (await scripted.settled()).aborts == aborts + 1
    await model.aclose()


async def test_replies_at_once_have_conversations_of_their_own(scripted: ScriptedProcess) -> None:
    model = make(scripted, max_connections=3)

    async def one(word: str) -> str:
        async with model.chat(chat_ctx=context(("user", f"{word} is said"), persona=f"Persona {word}.")) as stream:
            return (await stream.collect()).text

    words = [f"p{n}" for n in range(8)]
    assert await asyncio.gather(*(one(word) for word in words)) == [whole(word) for word in words]
    state = scripted.state()
    assert sorted(state.prompts) == sorted(f"[system] Persona {word}. [user] {word} is said" for word in words)
    assert state.connections <= 3
    await model.aclose()
    assert scripted.state().connections == 0


async def test_instructions_go_where_they_belong(scripted: ScriptedProcess) -> None:
    async with conversing(make(scripted), Agent(instructions=PERSONA)) as (session, _):
        await session.generate_reply(instructions="Greet the user.")
        await session.generate_reply(user_input="one is said")
    state = scripted.state()
    assert state.starts == ["persona runtime_text", ""]
    assert state.prompts[0].startswith(f"[system] {PERSONA} Greet the user.")
    assert "Greet" not in state.prompts[1]
    assert state.prompts[1].endswith("[user] one is said")


async def test_errors_are_the_frameworks_and_say_whether_to_try_again(scripted: ScriptedProcess) -> None:
    async def error(model: LLM, *said: tuple[str, str]) -> Exception:
        with pytest.raises((APIStatusError, APIConnectionError)) as caught:
            await model.chat(chat_ctx=context(*said), conn_options=ONCE).collect()
        await model.aclose()
        return caught.value

    failed = await error(make(scripted), ("user", "fail please"))
    assert (failed.status_code, failed.retryable) == (500, True)  # type: ignore[attr-defined]
    assert "scripted" not in str(failed)
    refused = await error(make(scripted, sampling={"temperature": 9.0}), ("user", "one is said"))
    assert (refused.status_code, refused.retryable) == (400, False)  # type: ignore[attr-defined]
    assert "temperature" in str(refused)
    stranger = await error(make(scripted, api_key="wrong"), ("user", "one is said"))
    assert (stranger.status_code, stranger.retryable) == (401, False)  # type: ignore[attr-defined]
    gone = await error(make(scripted, url="ws://127.0.0.1:9/ws"), ("user", "one is said"))
    assert isinstance(gone, APIConnectionError)
    assert gone.retryable
    picture = ChatContext.empty()
    picture.add_message(role="user", content=[ImageContent(image="https://example.com/a.jpg")])
    model = make(scripted)
    with pytest.raises(APIStatusError, match="image"):
        await model.chat(chat_ctx=picture, conn_options=ONCE).collect()
    await model.aclose()


async def test_a_failed_attempt_is_tried_again_by_the_framework(scripted: ScriptedProcess) -> None:
    model = make(scripted)
    again = APIConnectOptions(max_retry=2, retry_interval=0.01)
    async with model.chat(chat_ctx=context(("user", "one is said")), conn_options=again) as stream:
        scripted.drop()
        assert (await stream.collect()).text == whole("one")
    async with model.chat(chat_ctx=context(("user", "long is said")), conn_options=again) as stream:
        await anext(stream)
        scripted.drop()
        with pytest.raises(APIConnectionError) as caught:  # what was heard is not said again
            await stream.collect()
    assert not caught.value.retryable
    async with model.chat(chat_ctx=context(("user", "two is said")), conn_options=again) as stream:
        assert (await stream.collect()).text == whole("two")
    await model.aclose()


async def test_a_sampling_of_one_call_does_not_stay(scripted: ScriptedProcess) -> None:
    model = make(scripted)
    two = [("user", "one is said")]
    async with model.chat(
        chat_ctx=context(*two), extra_kwargs={"max_completion_tokens": 5, "seed": 1, "n": 1}
    ) as stream:
        await stream.collect()
    async with model.chat(chat_ctx=context(*two)) as stream:
        await stream.collect()
    assert scripted.state().sessions >= 2
    await model.aclose()


async def test_warming_opens_the_connection(scripted: ScriptedProcess) -> None:
    model = make(scripted)
    model.prewarm()
    while scripted.state().connections < 1:  # noqa: ASYNC110 - it is in another process
        await asyncio.sleep(0.005)
    async with model.chat(chat_ctx=context(("user", "one is said"))) as stream:
        await stream.collect()
    assert scripted.state().connections == 1
    await model.aclose()


def test_the_example_in_the_readme_prints_a_reply(scripted: ScriptedProcess) -> None:
    assert readme.run("LiveKit", scripted).startswith("Hello!-0 Hello!-1")


async def test_the_server_learns_what_was_heard(scripted: ScriptedProcess) -> None:
    model = make(scripted)
    said = [("user", "one is said")]
    async with model.chat(chat_ctx=context(*said)) as stream:
        await stream.collect()
    said += [("assistant", "One-0 one-1"), ("user", "two is said")]
    async with model.chat(chat_ctx=context(*said)) as stream:
        await stream.collect()
    await model.aclose()
    state = scripted.state()
    assert state.starts == ["persona", ""]
    assert state.prompts[1] == f"[system] {PERSONA} [user] one is said [assistant] One-0 one-1 [user] two is said"


async def test_the_frameworks_fallback_takes_over_from_a_server_that_is_gone(scripted: ScriptedProcess) -> None:
    gone, there = make(scripted, url="ws://127.0.0.1:9/ws"), make(scripted)
    async with FallbackAdapter([gone, there]).chat(chat_ctx=context(("user", "one is said"))) as stream:
        assert (await stream.collect()).text == whole("one")
    await gone.aclose()
    await there.aclose()


def test_an_option_that_is_none_is_told_where_it_was_given() -> None:
    with pytest.raises(TypeError, match="did you mean 'persona'"):
        LLM(url="ws://127.0.0.1:9/ws", connect_options={"personna": PERSONA})
