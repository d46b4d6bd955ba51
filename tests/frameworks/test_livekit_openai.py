"""LiveKit's own plugin for OpenAI, pointed at this server, in real agent sessions."""

from __future__ import annotations

import asyncio
import random
import re

import pytest
from livekit.agents import Agent, APIConnectOptions, APIStatusError, RunContext, function_tool
from livekit.agents.llm import ChatContext
from livekit.agents.metrics import LLMMetrics
from livekit.plugins import openai

from tests.frameworks.livekit_session import conversing
from tests.frameworks.scripted_process import KEY, ScriptedProcess

PERSONA = "You are Mia."


def make(scripted: ScriptedProcess, **values) -> openai.LLM:
    return openai.LLM(**{"model": scripted.model(), "base_url": f"{scripted.http}/v1", "api_key": KEY, **values})


def whole(word: str) -> str:
    return " ".join(f"{word}-{n}" for n in range(12))


async def test_a_conversation_with_its_usage(scripted: ScriptedProcess) -> None:
    model = make(scripted, temperature=0.5)
    metrics: list[LLMMetrics] = []
    model.on("metrics_collected", metrics.append)
    async with conversing(model, Agent(instructions=PERSONA)) as (session, text):
        await session.generate_reply(user_input="one is said")
        await session.generate_reply(user_input="think it over")
        assert "".join(part for _, part in text.said) == whole("one") + "spoken-0 spoken-1"
    prompts = scripted.state().prompts
    assert prompts[1] == f"[system] {PERSONA} [user] one is said [assistant] {whole('one')} [user] think it over"
    first, second = metrics
    assert first.ttft > 0
    assert (first.prompt_tokens, first.prompt_cached_tokens) == (len(prompts[0].split()), 3)
    assert (first.completion_tokens, first.total_tokens) == (12, 12 + first.prompt_tokens)
    assert second.reasoning_tokens > 0


async def test_nothing_of_a_turn_follows_its_interruption(scripted: ScriptedProcess) -> None:
    draw = random.Random(7)
    async with conversing(make(scripted), Agent(instructions=PERSONA)) as (session, text):
        for turn in range(60):
            text.turn = turn
            handle = session.generate_reply(user_input=f"t{turn} is said")
            await text.until(draw.choice((0, 1, 3, 99)), handle)
            await asyncio.sleep(draw.choice((0, 0.002, 0.01)))
            handle.interrupt()
            await handle
        text.turn = 60
        await session.generate_reply(user_input="t60 is said")
    for turn, part in text.said:
        assert {int(number) for number in re.findall(r"t(\d+)-\d+", part)} <= {turn}
    assert "".join(part for turn, part in text.said if turn == 60) == whole("t60")
    state = await scripted.settled()
    assert state.aborts > 0
    assert state.held == 0


async def test_a_tool_decision_is_a_function_call(scripted: ScriptedProcess) -> None:
    calls: list[str] = []

    @function_tool
    async def take_screenshot(ctx: RunContext) -> str:
        """Look at the screen."""
        calls.append(ctx.function_call.name)
        return "cat"

    agent = Agent(instructions=PERSONA, tools=[take_screenshot])
    async with conversing(make(scripted), agent) as (session, text):
        await session.generate_reply(user_input="take_screenshot now")
        assert "".join(part for _, part in text.said) == whole("cat")
    assert calls == ["take_screenshot"]
    assert scripted.state().prompts[-1].endswith("[user] (seen) cat")


@pytest.mark.parametrize(
    ("values", "status"), [({"temperature": 1.9}, 400), ({"api_key": "wrong"}, 401), ({"model": "another"}, 404)]
)
async def test_errors_have_their_status(scripted: ScriptedProcess, values, status: int) -> None:
    model = make(scripted, **values)
    context = ChatContext.empty()
    context.add_message(role="user", content="one is said")
    with pytest.raises(APIStatusError) as caught:
        await model.chat(chat_ctx=context, conn_options=APIConnectOptions(max_retry=0)).collect()
    await model.aclose()
    assert (caught.value.status_code, caught.value.retryable) == (status, False)
