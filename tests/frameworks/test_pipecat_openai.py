"""Pipecat's own service for OpenAI, pointed at this server, in real pipelines."""

from __future__ import annotations

import asyncio
import random
import re

from pipecat.frames.frames import InterruptionFrame, LLMTextFrame, LLMThoughtTextFrame
from pipecat.metrics.metrics import LLMUsageMetricsData, TTFBMetricsData
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.utils.errors import ErrorCategory

from tests.frameworks.pipecat_pipeline import conversing, spoken
from tests.frameworks.scripted_process import KEY, ScriptedProcess

PERSONA = "You are Mia."


def service(scripted: ScriptedProcess, **values) -> OpenAILLMService:
    settings = {"model": scripted.model(), "system_instruction": PERSONA, **values.pop("settings", {})}
    return OpenAILLMService(
        **{"api_key": KEY, "base_url": f"{scripted.http}/v1", **values}, settings=OpenAILLMService.Settings(**settings)
    )


def whole(word: str) -> str:
    return " ".join(f"{word}-{n}" for n in range(12))


async def test_a_conversation_with_its_usage(scripted: ScriptedProcess) -> None:
    async with conversing(service(scripted, settings={"temperature": 0.5, "max_tokens": 100})) as talk:
        assert await talk.ask("one is said") == whole("one")
        assert await talk.ask("think it over") == "spoken-0 spoken-1"
        assert talk.errors.frames == []
        assert not any(isinstance(frame, LLMThoughtTextFrame) for frame in talk.recorder.frames)
        metrics = talk.metrics()
    prompts = scripted.state().prompts
    assert prompts[1] == f"[system] {PERSONA} [user] one is said [assistant] {whole('one')} [user] think it over"
    first, second = [each.value for each in metrics if isinstance(each, LLMUsageMetricsData)]
    assert first.prompt_tokens == len(prompts[0].split())
    assert first.cache_read_input_tokens == 3
    assert (first.completion_tokens, first.total_tokens) == (12, 12 + first.prompt_tokens)
    assert second.reasoning_tokens > 0
    assert [each for each in metrics if isinstance(each, TTFBMetricsData) and each.value > 0]


async def test_nothing_of_a_turn_follows_its_interruption(scripted: ScriptedProcess) -> None:
    draw = random.Random(7)
    async with conversing(service(scripted)) as talk:
        for turn in range(60):
            await talk.speak(f"t{turn} is said")
            pieces = draw.choice((0, 1, 3, 99))
            if pieces:
                word = re.compile(rf"t{turn}-\d+")
                await talk.until(
                    lambda frames: talk.replied() or len(word.findall(spoken(frames))) >= pieces  # noqa: B023
                )
            else:
                await asyncio.sleep(draw.choice((0, 0.002, 0.01)))
        assert (await talk.ask("finally is said")).endswith(whole("finally"))
        assert talk.errors.frames == []
        frames = talk.recorder.frames
    turn = -1
    for frame in frames:
        if isinstance(frame, InterruptionFrame):
            turn += 1
        elif isinstance(frame, LLMTextFrame):
            assert {int(number) for number in re.findall(r"t(\d+)-\d+", frame.text)} <= {turn}
    state = await scripted.settled()
    assert state.aborts > 0
    assert state.held == 0


async def test_a_tool_decision_is_a_function_call(scripted: ScriptedProcess) -> None:
    calls: list[str] = []

    async def take_screenshot(params: FunctionCallParams) -> None:
        """Look at the screen."""
        calls.append(params.function_name)
        await params.result_callback("cat")

    async with conversing(service(scripted), LLMContext(tools=[take_screenshot])) as talk:
        assert await talk.ask("take_screenshot now", replies=2) == whole('"cat"')
        assert talk.errors.frames == []
    assert calls == ["take_screenshot"]
    assert scripted.state().prompts[-1].endswith('[user] (seen) "cat"')


async def test_errors_have_their_kind(scripted: ScriptedProcess) -> None:
    for values, category in (
        ({"settings": {"temperature": 1.9}}, ErrorCategory.INVALID_REQUEST),
        ({"api_key": "wrong"}, ErrorCategory.AUTHENTICATION),
        ({"settings": {"model": "another"}}, ErrorCategory.INVALID_REQUEST),
    ):
        async with conversing(service(scripted, **values)) as talk:
            await talk.ask("one is said")
            assert [frame.category for frame in talk.errors.frames] == [category]


async def test_an_inference_beside_the_conversation(scripted: ScriptedProcess) -> None:
    context = LLMContext([{"role": "user", "content": "aside please"}])
    llm = service(scripted)
    assert await llm.run_inference(context, max_tokens=50, system_instruction="Sum up.") == whole("aside")
    await llm._client.close()
    assert scripted.state().prompts == ["[system] Sum up. [user] aside please"]
