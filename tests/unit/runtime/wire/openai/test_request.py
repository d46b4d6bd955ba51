"""How requests are read: every field of OpenAI's API has its place, and what is wrong is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.types.chat import completion_create_params

from runtime.wire.messages import MAX_SEED, MAX_STOP_CHARS, Grammar
from runtime.wire.openai import request as fields
from runtime.wire.openai.errors import ApiError
from runtime.wire.openai.messages import Conversation, Said
from runtime.wire.openai.request import ChatRequest, RequestReader

READER = RequestReader(Grammar(), ("chat", "mia"), ("take_screenshot", "play_music"))
HELLO: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
# Values that no field of OpenAI's API takes for what is done anyway.
ODD: tuple[Any, ...] = (True, 7, "loud", {"type": "json_object"}, [{"a": 1}])


def read(**body: Any) -> ChatRequest:
    return READER.read(json.dumps({**HELLO, **body}).encode())


def refused(body: bytes | None = None, **changed: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        READER.read(json.dumps({**HELLO, **changed}).encode() if body is None else body)
    return caught.value


def tool(name: str = "take_screenshot", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def test_every_field_of_the_api_is_served_ignored_or_refused() -> None:
    known = {
        name
        for kind in (
            completion_create_params.CompletionCreateParamsNonStreaming,
            completion_create_params.CompletionCreateParamsStreaming,
        )
        for name in kind.__annotations__
    } | set(completion_create_params.CompletionCreateParamsBase.__annotations__)
    assert known == fields.SERVED | fields.IGNORED | set(fields.REFUSED)
    assert not fields.SERVED & fields.IGNORED
    assert not (fields.SERVED | fields.IGNORED | fields.EXTENSIONS) & set(fields.REFUSED)


@pytest.mark.parametrize("name", sorted(fields.REFUSED))
def test_what_is_not_served_is_refused_by_its_name_unless_it_asks_for_nothing(name: str) -> None:
    for neutral in (None, *fields.REFUSED[name]):
        assert read(**{name: neutral}) == read()
    for value in ODD:
        error = refused(**{name: value})
        assert (error.status, error.param) == (400, name)
        assert error.code in {"unsupported_value", "unsupported_parameter"}
        assert error.message.startswith(f"{name}: ")


def test_a_value_like_a_neutral_one_of_another_kind_is_none() -> None:
    for changed in ({"n": True}, {"n": 1.0}, {"logprobs": 0}, {"top_logprobs": False}):
        assert refused(**changed).code == "unsupported_value"


@pytest.mark.parametrize("name", [*sorted(fields.IGNORED), "ignore_eos", "chat_template_kwargs", "anything"])
def test_what_changes_nothing_and_what_is_unknown_is_ignored(name: str) -> None:
    for value in (None, *ODD):
        assert read(**{name: value}) == read()


@pytest.mark.parametrize("name", sorted(fields.SERVED - {"messages", "model"} | fields.EXTENSIONS))
def test_null_is_the_same_as_nothing(name: str) -> None:
    assert read(**{name: None}) == read()


def test_sampling_within_the_servers_bounds_is_taken_and_nothing_beyond_is() -> None:
    names = {"temperature": 0.4, "top_p": 0.9, "top_k": 12, "presence_penalty": 0.5, "repetition_penalty": 1.1}
    assert dict(read(**names).sampling.values) == names
    for name, bound in Grammar().bounds.items():
        for value, side in ((bound.low - 0.5, "below_min"), (bound.high + 1, "above_max")):
            wanted = round(value) if bound.whole else value
            wanted = -1 if bound.whole and side == "below_min" else wanted
            error = refused(**{name: wanted})
            assert (error.status, error.param) == (400, name)
            assert error.code == f"{'integer' if bound.whole else 'decimal'}_{side}_value"
        for wrong in ("0.7", True, [], {}):
            assert refused(**{name: wrong}).code == "invalid_type"


NUMBERS = st.sampled_from([None, 0, 1, 1.0, True, False, 0.5, "1", [], {}, 10**400, 30, 30.0])
ASKED = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("temperature", "top_k", "top_p", "max_tokens", "max_completion_tokens", "sanitize_output", "seed", "stop"),
        NUMBERS,
    ),
)


@given(st.lists(ASKED, max_size=6))
@settings(deadline=None)
def test_what_others_asked_before_changes_nothing(bodies: list[dict[str, Any]]) -> None:
    def outcome(reader: RequestReader, body: dict[str, Any]) -> str:
        try:
            return repr(reader._sampling(body))
        except ApiError as error:
            return repr((error.status, error.code, error.message))

    experienced = RequestReader(Grammar(), ["chat"], [])
    for body in (*bodies, *bodies):
        assert outcome(experienced, body) == outcome(RequestReader(Grammar(), ["chat"], []), body)


def test_no_more_is_kept_of_what_was_asked_than_some() -> None:
    reader = RequestReader(Grammar(), ["chat"], [])
    for number in range(3 * fields.KNOWN_SAMPLINGS):
        assert reader._sampling({"temperature": number / 1000}).values == {"temperature": number / 1000}
        assert len(reader._known) <= fields.KNOWN_SAMPLINGS
    kept = len(reader._known)
    reader._sampling({"temperature": 0.5, "seed": 5})
    reader._sampling({"temperature": 0.5, "stop": ["words of a client"]})
    assert len(reader._known) == kept


def test_the_length_of_a_reply_has_two_names_and_one_bound() -> None:
    assert read(max_tokens=7).sampling.max_tokens == read(max_completion_tokens=7).sampling.max_tokens == 7
    assert read(max_tokens=7, max_completion_tokens=7).sampling.max_tokens == 7
    assert refused(max_tokens=7, max_completion_tokens=8).param == "max_tokens"
    for name in ("max_tokens", "max_completion_tokens"):
        assert (refused(**{name: 0}).code, refused(**{name: 151}).code) == (
            "integer_below_min_value",
            "integer_above_max_value",
        )
        assert refused(**{name: 1.5}).code == "invalid_type"


def test_stops_are_one_or_a_few() -> None:
    assert read(stop="END").sampling.stop == ("END",)
    assert read(stop=["a", "b"]).sampling.stop == ("a", "b")
    assert read(stop=[]).sampling.stop == ()
    for wrong in ("", ["a", ""], ["x"] * 5, "x" * (MAX_STOP_CHARS + 1), 5, ["a", 5], {}):
        assert refused(stop=wrong).param == "stop"


def test_seeds_are_exact() -> None:
    assert read(seed=MAX_SEED).sampling.seed == MAX_SEED
    for wrong in (-1, MAX_SEED + 1, 1.0, "1", True):
        assert refused(seed=wrong).param == "seed"
    assert str(MAX_SEED) in str(refused(seed=MAX_SEED + 1)), "a bound is told as it is, not rounded"


def test_a_reply_is_plain_unless_it_shall_be_spoken() -> None:
    assert read().sampling.sanitize is False
    assert read(sanitize_output=True).sampling.sanitize is True
    assert refused(sanitize_output="yes").param == "sanitize_output"


def test_usage_is_told_in_streams_alone() -> None:
    assert read(stream=True, stream_options={"include_usage": True}).include_usage
    assert not read(stream=True, stream_options={}).include_usage
    assert refused(stream_options={"include_usage": True}).param == "stream_options"
    assert refused(stream=True, stream_options={"include_obfuscation": True}).param == (
        "stream_options.include_obfuscation"
    )
    assert refused(stream="yes").param == "stream"


def test_models_are_known_by_any_of_their_names() -> None:
    assert read(model="mia").model == "mia"
    error = refused(model="gpt")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert refused(model=None).code == "missing_required_parameter"
    assert refused(model=5).code == "invalid_type"


def test_instructions_come_before_what_was_said_or_between() -> None:
    messages = [
        {"role": "system", "content": "You are Mia."},
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        {"role": "assistant", "content": "Hello!"},
        {"role": "developer", "content": "Now ask for a name."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "Ann"},
    ]
    assert read(messages=messages).conversation == Conversation(
        "You are Mia.\n\nBe\nbrief.", "Now ask for a name.", (Said("assistant", "Hello!"), Said("user", "hi"))
    )


def test_a_tools_answer_knows_its_tool() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "take_screenshot", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    ]
    said = read(messages=messages).conversation.said
    assert said == (Said("user", "look"), Said("tool", "a cat", "take_screenshot"))
    messages[2]["tool_call_id"] = "c2"
    assert refused(messages=messages).param == "messages[2].tool_call_id"


USER: Any = {"role": "user", "content": "hi"}
WRONG_MESSAGES: dict[str, tuple[Any, str]] = {
    "none": (None, "messages"),
    "empty": ([], "messages"),
    "text": ("hi", "messages"),
    "a number": ([5], "messages[0]"),
    "no role": ([{"content": "hi"}], "messages[0].role"),
    "another role": ([USER, {"role": "critic", "content": "hi"}], "messages[1].role"),
    "a function's": ([{"role": "function", "name": "f", "content": "hi"}], "messages[0].role"),
    "no content": ([{"role": "user"}], "messages[0].content"),
    "null": ([{"role": "system", "content": None}], "messages[0].content"),
    "a reply of nothing": ([{"role": "assistant"}], "messages[0].content"),
    "an audio reply": ([{"role": "assistant", "audio": {"id": "a"}}], "messages[0].audio"),
    "an image": ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
    "sound": ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
    "a file": (
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "file"}]}],
        "messages[0].content[1].type",
    ),
    "a refusal by the user": ([{"role": "user", "content": [{"type": "refusal"}]}], "messages[0].content[0].type"),
    "a part without text": ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    "calls that are none": ([{"role": "assistant", "tool_calls": 5}], "messages[0].tool_calls"),
    "a custom call": ([{"role": "assistant", "tool_calls": [{"type": "custom"}]}], "messages[0].tool_calls[0].type"),
    "an answer to nothing": ([{"role": "tool", "tool_call_id": "x", "content": ""}], "messages[0].tool_call_id"),
}


@pytest.mark.parametrize("case", WRONG_MESSAGES)
def test_what_is_wrong_with_messages_is_named(case: str) -> None:
    messages, param = WRONG_MESSAGES[case]
    error = refused(messages=messages)
    assert (error.status, error.param) == (400, param)
    assert error.message.startswith(param)


def test_tools_are_those_of_the_classifier() -> None:
    assert read().tools == frozenset()
    assert read(tools=[tool(), tool("play_music")]).tools == {"take_screenshot", "play_music"}
    assert read(tools=[tool()], tool_choice="auto").tools == {"take_screenshot"}
    assert read(tools=[tool("anything")], tool_choice="none").tools == frozenset()
    assert read(tools=[], tool_choice="auto").tools == frozenset()
    assert read(tools=[tool(parameters={"type": "object", "properties": {}, "required": []})]).tools
    assert (read(tools=[tool()], parallel_tool_calls=False).one_call, read(tools=[tool()]).one_call) == (True, False)


WRONG_TOOLS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"tools": [tool(), tool("weather")]}, "tools[1].function.name"),
    "with arguments": ({"tools": [tool(parameters={"required": ["x"]})]}, "tools[0].function.parameters.required"),
    "custom": ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    "nameless": ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    "no list": ({"tools": {}}, "tools"),
    "required": ({"tools": [tool()], "tool_choice": "required"}, "tool_choice"),
    "one that must be": ({"tools": [tool()], "tool_choice": tool()}, "tool_choice"),
    "some of them": ({"tools": [tool()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    "a number": ({"tools": [tool()], "tool_choice": 5}, "tool_choice"),
    "parallel": ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
}


@pytest.mark.parametrize("case", WRONG_TOOLS)
def test_what_is_wrong_with_tools_is_named(case: str) -> None:
    changed, param = WRONG_TOOLS[case]
    error = refused(**changed)
    assert (error.status, error.param) == (400, param)


def test_a_server_without_a_classifier_says_that_it_decides_on_nothing() -> None:
    reader = RequestReader(Grammar(), ("chat",), ())
    with pytest.raises(ApiError, match="decides on none"):
        reader.read(json.dumps({**HELLO, "tools": [tool()]}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"temperature": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"[]",
        b"null",
        b'"hi"',
    ],
    ids=range(10),
)
def test_what_is_no_object_of_json_is_refused(body: bytes) -> None:
    error = refused(body)
    assert (error.status, error.param) == (400, None)
    assert error.code in {"invalid_json", "invalid_type"}


def test_half_of_an_emoji_is_one_character_less() -> None:
    body = b'{"model":"chat","messages":[{"role":"user","content":"hi \\ud83d"}]}'
    assert READER.read(body).conversation.said == (Said("user", "hi \ufffd"),)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = sorted(fields.SERVED | fields.IGNORED | fields.EXTENSIONS | set(fields.REFUSED))
PARTS = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "refusal", "image_url"]) | JSON, "text": st.text(max_size=4) | JSON}
)
CALLS = st.fixed_dictionaries({}, optional={"id": st.sampled_from(["a", "b"]) | JSON, "type": JSON, "function": JSON})
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"]) | JSON,
        "content": st.text(max_size=8) | st.lists(PARTS, max_size=3) | JSON,
        "tool_calls": st.lists(CALLS, max_size=2) | JSON,
        "tool_call_id": st.sampled_from(["a", "b"]) | JSON,
        "refusal": JSON,
    },
)
BODIES = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5).flatmap(
    lambda body: st.fixed_dictionaries(
        {
            "model": st.sampled_from(["chat", "chat", "chat", "other"]),
            "messages": st.lists(MESSAGES, max_size=4) | JSON,
        }
    ).map(lambda own: {**body, **own})
)


@given(BODIES)
@example({"model": "chat", "messages": [{"role": "user", "content": "a"}], "top_k": 1e300})
@example({"model": "chat", "messages": [{"role": "user", "content": "a"}], "temperature": 10**400})
def test_any_body_is_a_request_or_an_error_with_a_status_of_its_own(body: dict[str, Any]) -> None:
    try:
        found: ChatRequest | ApiError = READER.read(json.dumps(body).encode())
    except ApiError as error:
        found = error
    if isinstance(found, ChatRequest):
        assert found.model == "chat"
        assert all(bound.low <= found.sampling.values.get(name, bound.low) for name, bound in Grammar().bounds.items())
        return
    assert found.status in {400, 404}
    assert found.code
    told = json.loads(found.body())["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert told["type"] == "invalid_request_error"


@given(st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
def test_any_bytes_are_an_error(body: bytes) -> None:
    assert refused(body).status == 400
