"""How answers are written: as OpenAI's own types read them, whatever the text is."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.types import CompletionUsage, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from runtime.wire.frames import Usage
from runtime.wire.openai import answers
from runtime.wire.openai.answers import Chunks, Heading, ToolCall

HEADING = Heading("chatcmpl-1", 1_795_000_000, 'org/"model"', "fp_abc")
USAGE = Usage(
    prompt_tokens=100,
    cached_tokens=64,
    completion_tokens=20,
    thinking_tokens=5,
    finish_reason="length",
    ttft_ms=1.0,
    duration_ms=2.0,
)


def events(stream: bytes) -> list[Any]:
    """The data of each event, `[DONE]` as it is."""
    assert stream.endswith(b"\n\n")
    lines = stream.decode().split("\n\n")[:-1]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def chunk(piece: Any) -> ChatCompletionChunk:
    """A piece as the client's own type, nothing of it unknown to that."""
    read = ChatCompletionChunk.model_validate(piece, strict=True)
    assert read.model_extra in (None, {})
    return read


@given(st.lists(st.text(min_size=1), max_size=5), st.booleans())
def test_any_text_comes_through_a_stream_as_it_is(texts: list[str], include_usage: bool) -> None:
    chunks = Chunks(HEADING, include_usage=include_usage)
    stream = b"".join([chunks.role(), *map(chunks.text, texts), chunks.end("stop", USAGE)])
    *pieces, done = events(stream)
    assert done == "[DONE]"
    read = [chunk(piece) for piece in pieces]
    assert {(one.id, one.created, one.model, one.system_fingerprint) for one in read} == {
        (HEADING.id, HEADING.created, HEADING.model, HEADING.fingerprint)
    }
    assert [one.choices[0].delta.content for one in read[1 : 1 + len(texts)]] == texts
    ended = read[1 + len(texts)]
    assert ended.choices[0].finish_reason == "stop"
    assert [one.usage is not None for one in read] == [False] * (2 + len(texts)) + [True] * include_usage
    assert all(("usage" in piece) == include_usage for piece in pieces)


@given(st.text())
def test_any_text_is_a_whole_answer(text: str) -> None:
    read = ChatCompletion.model_validate_json(answers.whole(HEADING, text, (), USAGE), strict=True)
    (choice,) = read.choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (text, None, "length")


def test_usage_is_the_turns_own() -> None:
    told = ChatCompletion.model_validate_json(answers.whole(HEADING, "hi", (), USAGE)).usage
    assert isinstance(told, CompletionUsage)
    assert told.prompt_tokens_details is not None
    assert told.completion_tokens_details is not None
    assert (told.prompt_tokens, told.completion_tokens, told.total_tokens) == (100, 20, 120)
    assert told.prompt_tokens_details.cached_tokens == 64
    assert told.completion_tokens_details.reasoning_tokens == 5


def test_calls_are_a_whole_answer_without_text() -> None:
    calls = (ToolCall.of("take_screenshot", "call_1"), ToolCall.of("play_music", "call_2"))
    body = answers.whole(HEADING, "what it would have said", calls, USAGE)
    (choice,) = ChatCompletion.model_validate_json(body).choices
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert json.loads(body)["choices"][0]["message"]["tool_calls"] == [
        {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for number, name in ((1, "take_screenshot"), (2, "play_music"))
    ]


def test_calls_in_a_stream_are_numbered() -> None:
    chunks = Chunks(HEADING, include_usage=False)
    stream = b"".join([chunks.role(calls=True), *(chunks.call(ToolCall.of("a", f"c{n}", n)) for n in (0, 1))])
    role, *called = [chunk(piece) for piece in events(stream)]
    assert role.choices[0].delta.content is None
    assert [(one.choices[0].delta.tool_calls or [])[0].index for one in called] == [0, 1]


def test_models_are_listed_as_the_client_reads_them() -> None:
    listed = json.loads(answers.models(("a", "org/b"), 7))
    assert listed["object"] == "list"
    assert [Model.model_validate(one).id for one in listed["data"]] == ["a", "org/b"]
    assert Model.model_validate_json(answers.model("a", 7)).created == 7
