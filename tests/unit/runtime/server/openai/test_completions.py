"""What OpenAI's own client gets: replies whole and streamed, tools, and usage; and what the engine is asked for it."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from runtime.text.replies.reply_format import ReplyFormat
from tests.harness.scripted import KEY, REPLY, Running, ScriptedClassifier, ScriptedEngine, serving

SCREENSHOT: Any = {
    "type": "function",
    "function": {"name": "take_screenshot", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
}
HELLO: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there"}]
LOOK: Any = [{"role": "user", "content": "look at this"}]
MODEL = "chat"


def client(running: Running, **options: Any) -> AsyncOpenAI:
    address = f"http://127.0.0.1:{running.port}/v1"
    return AsyncOpenAI(**{"base_url": address, "api_key": KEY, "max_retries": 0, **options})


async def test_a_whole_reply_and_what_it_cost() -> None:
    async with serving() as running, client(running) as api:
        answer = await api.chat.completions.create(model=MODEL, messages=HELLO)
    choice = answer.choices[0]
    assert (answer.object, answer.model, len(answer.choices)) == ("chat.completion", MODEL, 1)
    assert (choice.message.content, choice.message.role, choice.finish_reason) == ("".join(REPLY), "assistant", "stop")
    assert choice.message.tool_calls is None
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 4, 10)
    assert usage.prompt_tokens_details.cached_tokens == 3
    assert running.engine.prompts == [["[system]", "be", "brief", "[user]", "hello", "there"]]


async def test_a_stream_begins_with_the_role_and_ends_with_its_reason_and_its_usage() -> None:
    async with serving(ScriptedEngine(pause=0.01)) as running, client(running) as api:
        stream = await api.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    *spoken, last, cost = chunks
    assert (spoken[0].choices[0].delta.role, spoken[0].choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in spoken) == "".join(REPLY)
    assert all(chunk.choices[0].finish_reason is None and chunk.usage is None for chunk in spoken)
    assert (last.choices[0].finish_reason, last.choices[0].delta.content) == ("stop", None)
    assert cost.choices == []
    assert cost.usage is not None
    assert cost.usage.completion_tokens == 4


async def test_usage_is_left_out_of_a_stream_where_nobody_asked() -> None:
    async with serving() as running, client(running) as api:
        stream = await api.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


async def test_the_synchronous_client_gets_the_same() -> None:
    def ask(port: int) -> tuple[str | None, str]:
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0) as api:
            whole = api.chat.completions.create(model=MODEL, messages=HELLO)
            pieces = api.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
            assert [model.id for model in api.models.list()] == [MODEL]
            assert api.models.retrieve(MODEL).id == MODEL
            return whole.choices[0].message.content, said

    async with serving() as running:
        assert await asyncio.to_thread(ask, running.port) == ("".join(REPLY),) * 2


async def test_a_decision_yes_is_the_tools_call_and_nothing_is_said() -> None:
    async with serving(classifier=ScriptedClassifier()) as running, client(running) as api:
        answer = await api.chat.completions.create(model=MODEL, messages=LOOK, tools=[SCREENSHOT])
        (call,) = answer.choices[0].message.tool_calls or ()
        assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("tool_calls", None)
        assert call.type == "function"
        assert (call.function.name, call.function.arguments) == ("take_screenshot", "{}")
        # What the tool found goes on as a followup does: behind the same words, and without another decision.
        messages = [*LOOK, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "a cat"}]
        told = await api.chat.completions.create(model=MODEL, messages=messages, tools=[SCREENSHOT])
    assert told.choices[0].message.content == "".join(REPLY)
    assert running.classifier is not None
    assert len(running.classifier.asked) == 1
    assert running.engine.prompts[-1] == [
        "[user]",
        "look",
        "at",
        "this",
        "[user]",
        "ON",
        "THE",
        "SCREEN",
        "NOW:",
        "a",
        "cat",
    ]
    assert not running.engine.held


async def test_a_call_is_streamed_in_the_order_that_clients_know() -> None:
    async with serving(classifier=ScriptedClassifier()) as running, client(running) as api:
        stream = await api.chat.completions.create(
            model=MODEL, messages=LOOK, tools=[SCREENSHOT], stream=True, stream_options={"include_usage": True}
        )
        role, called, ended, cost = [chunk async for chunk in stream]
    assert (role.choices[0].delta.role, role.choices[0].delta.content) == ("assistant", None)
    (call,) = called.choices[0].delta.tool_calls or ()
    assert call.function is not None
    assert (call.index, call.type, bool(call.id)) == (0, "function", True)
    assert (call.function.name, call.function.arguments) == ("take_screenshot", "{}")
    assert ended.choices[0].finish_reason == "tool_calls"
    assert cost.usage is not None
    assert cost.usage.completion_tokens == 0


@pytest.mark.parametrize("options", [{}, {"tools": [SCREENSHOT], "tool_choice": "none"}], ids=["no tools", "none"])
async def test_without_tools_nothing_is_decided(options: Any) -> None:
    async with serving(classifier=ScriptedClassifier()) as running, client(running) as api:
        answer = await api.chat.completions.create(model=MODEL, messages=LOOK, **options)
    assert answer.choices[0].finish_reason == "stop"
    assert running.classifier is not None
    assert running.classifier.asked == []
    assert running.engine.prompts == [["[user]", "look", "at", "this"]]


async def test_a_decision_no_is_a_reply() -> None:
    async with serving(classifier=ScriptedClassifier()) as running, client(running) as api:
        answer = await api.chat.completions.create(model=MODEL, messages=HELLO, tools=[SCREENSHOT])
    assert answer.choices[0].message.content == "".join(REPLY)
    assert running.classifier is not None
    assert len(running.classifier.asked) == 1


async def test_what_the_model_said_is_told_as_it_said_it_unless_it_shall_be_spoken() -> None:
    engine = ScriptedEngine(reply=("**Sure**", " 🙂", " it is."))
    async with serving(engine) as running, client(running) as api:
        plain = await api.chat.completions.create(model=MODEL, messages=HELLO)
        spoken = await api.chat.completions.create(model=MODEL, messages=HELLO, extra_body={"sanitize_output": True})
    assert plain.choices[0].message.content == "**Sure** 🙂 it is."
    assert spoken.choices[0].message.content == "Sure it is."


async def test_thought_is_hidden_and_counted() -> None:
    engine = ScriptedEngine(reply=("<think>", "hm", "</think>", "Sure."))
    async with serving(engine, form=ReplyFormat(thinks=True), thinking=20) as running, client(running) as api:
        answer = await api.chat.completions.create(model=MODEL, messages=HELLO)
        stream = await api.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert answer.choices[0].message.content == said == "Sure."
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3


async def test_a_client_that_hangs_up_aborts_in_the_engine() -> None:
    gate = asyncio.Event()
    async with serving(ScriptedEngine(gate=gate)) as running, client(running) as api:
        for stream in (True, False):
            asking = asyncio.ensure_future(api.chat.completions.create(model=MODEL, messages=HELLO, stream=stream))
            while not running.engine.held:  # noqa: ASYNC110 - the engine has no event for it
                await asyncio.sleep(0.005)
            asking.cancel()
            while running.engine.held or running.service.admission.held:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    assert running.engine.aborts == 2


async def test_wrong_keys_models_and_fields_are_the_clients_own_exceptions() -> None:
    async with serving() as running, client(running) as api:
        ask = api.chat.completions.create
        with pytest.raises(openai.AuthenticationError) as denied:
            await api.with_options(api_key="wrong").models.list()
        with pytest.raises(openai.NotFoundError) as unknown:
            await ask(model="gpt", messages=HELLO)
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(model=MODEL, messages=HELLO, temperature=1.9)
    assert denied.value.code == "invalid_api_key"
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert (refused.value.code, refused.value.param) == ("decimal_above_max_value", "temperature")
    assert "1.9" in refused.value.message
    assert running.engine.prompts == []
