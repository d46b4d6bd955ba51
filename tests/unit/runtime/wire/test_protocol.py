"""What a client may say, and what it is told when it says something else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.server.connection import rejection
from runtime.text.prompt import Message
from runtime.wire import frames, messages
from runtime.wire.decoder import Decoder
from runtime.wire.fields import parse_transcript
from runtime.wire.messages import Bound, Grammar, Inbound, Rejected, SamplingChange
from runtime.wire.schema import CLIENT_MESSAGES

DECODER = Decoder()


def decode(**message: Any) -> Inbound:
    return DECODER.decode(json.dumps(message))


def refused(**message: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        decode(**message)
    return caught.value


def start(**fields: Any) -> messages.Start:
    message = decode(**{"type": "start", "session_id": "s", **fields})
    assert isinstance(message, messages.Start)
    return message


def refused_start(**fields: Any) -> Rejected:
    return refused(**{"type": "start", "session_id": "s", **fields})


def test_the_smallest_start_says_nothing_but_its_session() -> None:
    assert start() == messages.Start(session_id="s")


def test_a_start_carries_everything() -> None:
    message = start(
        request_id="r",
        gender="Female",
        persona_style="flirty",
        persona_text="You are Mia.",
        user_identity="non-binary",
        history=[{"role": "User", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        user_utterance="what is that",
        runtime_text="It is late.",
        sampling={"temperature": "0.4", "top_k": 12.0, "sanitize_output": False},
        check_screen_prefix="LOOK:",
        screen_checked_prefix="SEEN:",
        personalities={"flirty": ["teasing"]},
        something_else=[1, 2],
    )
    assert message == messages.Start(
        request_id="r",
        session_id="s",
        gender="female",
        personality="flirty",
        persona="You are Mia.",
        user_identity="non-binary",
        history=(Message("user", "hi"), Message("assistant", "hello")),
        utterance="what is that",
        runtime_text="It is late.",
        sampling=SamplingChange({"temperature": 0.4, "top_k": 12.0}, sanitize=False),
        check_screen_prefix="LOOK:",
        screen_checked_prefix="SEEN:",
    )


def test_aliases_mean_the_same() -> None:
    assert start(chat_prompt="p", personality="calm") == start(persona_text="p", persona_style="calm")


def test_flat_and_nested_sampling_mean_the_same_and_nested_wins() -> None:
    assert start(top_p=0.8, sanitize_output=False) == start(sampling={"top_p": 0.8, "sanitize_output": False})
    assert start(top_p=0.8, sampling={"top_p": 0.9}).sampling.values == {"top_p": 0.9}


@pytest.mark.parametrize("text", ["0.5", " 0.5 ", "5e-1", "+.5", "0.50"])
def test_a_number_may_come_as_text(text: str) -> None:
    assert start(temperature=text).sampling.values == {"temperature": 0.5}


def test_null_means_absent() -> None:
    assert start(gender=None, history=None, sampling=None, temperature=None, request_id=None) == start()


def test_an_empty_history_is_a_history() -> None:
    assert start(history=[]).history == ()
    assert start(history_text="").history == ()
    assert start().history is None


@pytest.mark.parametrize("kind", ["ping", "PING", " Ping "])
def test_the_type_is_read_in_any_case(kind: str) -> None:
    assert decode(type=kind, request_id=1) == messages.Ping(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__CANCEL__", messages.Cancel()),
        ("__END__\n", messages.End()),
        ('{"cancel": true, "request_id": "r"}', messages.Cancel("r")),
        ('{"end": true}', messages.End()),
        ('{"type": "pong"}', messages.Pong()),
        ('{"type": "followup", "analysis_text": "a cat"}', messages.Followup(analysis="a cat")),
        ('{"type": "warm_persona", "persona_text": "p"}', messages.WarmPersona(persona="p")),
        (
            '{"type": "warm_history", "history_text": "User: hi", "runtime_text": "r"}',
            messages.WarmHistory(history=(Message("user", "hi"),), runtime_text="r"),
        ),
        ('{"type": "chat_prompt", "chat_prompt": "p"}', messages.ChatPrompt(persona="p")),
    ],
)
def test_every_form_of_a_message_is_understood(text: str, message: Inbound) -> None:
    assert DECODER.decode(text) == message


def test_sentinels_and_bounds_are_the_operators() -> None:
    decoder = Decoder(Grammar({"temperature": Bound(0, 2)}, "STOP", "BYE"))
    assert decoder.decode("STOP") == messages.Cancel()
    assert decoder.decode("BYE") == messages.End()
    message = decoder.decode('{"type": "start", "session_id": "s", "temperature": 1.9}')
    assert isinstance(message, messages.Start)
    assert message.sampling.values == {"temperature": 1.9}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"session_id": None}, "missing_session_id"),
        ({"session_id": ""}, "missing_session_id"),
        ({"session_id": 5}, "invalid_session_id"),
        ({"session_id": "x" * 257}, "invalid_session_id"),
        ({"request_id": [1]}, "invalid_request_id"),
        ({"request_id": True}, "invalid_request_id"),
        ({"request_id": 2**80}, "invalid_request_id"),
        ({"request_id": "x" * 257}, "invalid_request_id"),
        ({"gender": "other"}, "invalid_gender"),
        ({"gender": 1}, "invalid_gender"),
        ({"persona_style": "x" * 21}, "invalid_persona_style"),
        ({"persona_style": "a b"}, "invalid_persona_style"),
        ({"personality": "4"}, "invalid_personality"),
        ({"persona_text": 3}, "invalid_persona_text"),
        ({"chat_prompt": []}, "invalid_chat_prompt"),
        ({"user_identity": "x"}, "invalid_user_identity"),
        ({"history": "User: hi"}, "invalid_history"),
        ({"history": [{"role": "system", "content": "x"}]}, "invalid_history"),
        ({"history": [{"role": "user"}]}, "invalid_history"),
        ({"history": ["hi"]}, "invalid_history"),
        ({"history_text": "hello"}, "invalid_history_text"),
        ({"history_text": 1}, "invalid_history_text"),
        ({"user_utterance": {}}, "invalid_user_utterance"),
        ({"runtime_text": 1}, "invalid_runtime_text"),
        ({"sampling": 1}, "invalid_sampling"),
        ({"temperature": "warm"}, "invalid_temperature"),
        ({"temperature": True}, "invalid_temperature"),
        ({"temperature": "nan"}, "invalid_temperature"),
        ({"temperature": "1e999"}, "invalid_temperature"),
        ({"temperature": "0_1"}, "invalid_temperature"),
        ({"temperature": "٠"}, "invalid_temperature"),
        ({"temperature": ""}, "invalid_temperature"),
        ({"temperature": 1.3}, "temperature_out_of_range"),
        ({"temperature": "-0.1"}, "temperature_out_of_range"),
        ({"top_p": 0.59}, "top_p_out_of_range"),
        ({"top_k": 2.5}, "invalid_top_k"),
        ({"top_k": 61}, "top_k_out_of_range"),
        ({"sampling": {"min_p": 0.21}}, "min_p_out_of_range"),
        ({"repetition_penalty": 0.9}, "repetition_penalty_out_of_range"),
        ({"presence_penalty": 0.6}, "presence_penalty_out_of_range"),
        ({"frequency_penalty": -0.1}, "frequency_penalty_out_of_range"),
        ({"sanitize_output": 1}, "invalid_sanitize_output"),
        ({"check_screen_prefix": "x" * 31}, "invalid_check_screen_prefix"),
        ({"screen_checked_prefix": 1}, "invalid_screen_checked_prefix"),
        ({"personalities": {"a": "b"}}, "invalid_personalities"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected_and_what_came(fields: dict[str, Any], code: str) -> None:
    rejected = refused_start(**fields)
    assert rejected.code == code
    assert rejected.field is not None
    assert rejected.field in code
    assert rejected.expected
    assert rejected.found
    assert rejected.message == f"{rejected.field}: expected {rejected.expected}, found {rejected.found}"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"type": "dance"}, "unknown_message_type"),
        ({"type": 1}, "invalid_type"),
        ({"type": "x" * 1000}, "unknown_message_type"),
        ({}, "missing_type"),
        ({"type": ""}, "missing_type"),
        ({"type": " \t"}, "missing_type"),
        ({"type": None}, "missing_type"),
        ({"cancel": False}, "missing_type"),
        ({"type": "followup"}, "missing_analysis_text"),
        ({"type": "followup", "analysis_text": "  "}, "missing_analysis_text"),
        ({"type": "warm_persona"}, "missing_chat_prompt"),
        ({"type": "warm_history"}, "missing_history"),
        ({"type": "chat_prompt"}, "missing_persona_text"),
        ({"type": "chat_prompt", "persona_text": " "}, "missing_persona_text"),
    ],
)
def test_a_message_without_what_it_needs_is_refused(message: dict[str, Any], code: str) -> None:
    assert refused(**message).code == code


@pytest.mark.parametrize("text", ["", "hello", "[]", "1", '"start"', "null", '{"type":', '{"a": NaN}', "[" * 100_000])
def test_what_is_no_json_object_is_an_invalid_message(text: str) -> None:
    with pytest.raises(Rejected) as caught:
        DECODER.decode(text)
    assert caught.value.code == "invalid_message"


def pieces_of_strings() -> st.SearchStrategy[str]:
    """What JSON may write in a string, and halves of surrogate pairs among it."""
    half = st.integers(0xD800, 0xDFFF).map(lambda code: f"\\u{code:04x}")
    return (
        half
        | half.map(lambda text: "\\u" + text[2:].upper())
        | st.sampled_from(
            [
                "\\\\",
                '\\"',
                "\\n",
                "\\/",
                "u",
                "d800",
                "\\\\ud800",
                "\\ud83d\\ude00",
                "\\u0041",
                "a",
                " ",
                "🙂",
                "}",
                "{",
            ]
        )
    )


@given(st.lists(pieces_of_strings(), max_size=12).map("".join), st.sampled_from(["user_utterance", "request_id"]))
def test_half_of_a_surrogate_pair_is_a_replacement_character(written: str, field: str) -> None:
    text = f'{{"type": "start", "session_id": "s", "{field}": "{written}", "\\udc00{written}": 1}}'
    message = DECODER.decode(text)
    assert isinstance(message, messages.Start)
    expected = "".join("\ufffd" if 0xD800 <= ord(char) <= 0xDFFF else char for char in json.loads(f'"{written}"'))
    assert (message.utterance if field == "user_utterance" else message.request_id) == expected


@pytest.mark.parametrize("text", [r'{"type": "ping"} \ud800', r'{"type": "\ud800', r'\ud800{"type": "ping"}'])
def test_half_of_a_surrogate_pair_mends_nothing_else(text: str) -> None:
    with pytest.raises(Rejected) as caught:
        DECODER.decode(text)
    assert caught.value.code == "invalid_message"


def test_a_refusal_of_a_message_with_half_of_a_surrogate_pair_echoes_the_request_id() -> None:
    with pytest.raises(Rejected) as caught:
        DECODER.decode(r'{"type": "cance\ud800", "request_id": "r"}')
    assert (caught.value.code, caught.value.request_id) == ("unknown_message_type", "r")


@pytest.mark.parametrize("kind", CLIENT_MESSAGES)
@pytest.mark.parametrize("request_id", [[], True, "x" * 257, 2**80])
def test_a_message_whose_request_id_cannot_be_read_is_refused_as_what_it_is(kind: str, request_id: Any) -> None:
    rejected = refused(type=f" {kind.upper()} ", request_id=request_id)
    assert (rejected.code, rejected.kind, rejected.request_id) == ("invalid_request_id", kind, None)
    assert isinstance(rejection(rejected), frames.ChatPromptAck if kind == "chat_prompt" else frames.Error)


def test_a_refusal_echoes_the_request_id() -> None:
    frame = rejection(refused_start(request_id=9, temperature=5))
    assert json.loads(frames.encode(frame)) == {
        "type": "error",
        "error_code": "temperature_out_of_range",
        "message": "temperature: expected a number from 0 to 1.2, found 5",
        "field": "temperature",
        "expected": "a number from 0 to 1.2",
        "found": "5",
        "request_id": 9,
    }


def test_an_invalid_chat_prompt_is_answered_by_its_own_ack() -> None:
    frame = json.loads(frames.encode(rejection(refused(type="chat_prompt", persona_text=1, request_id="r"))))
    assert (frame["type"], frame["for"], frame["ok"], frame["code"]) == ("ack", "chat_prompt", False, 400)
    assert frame["error_code"] == "invalid_persona_text"
    assert frame["request_id"] == "r"


def test_what_is_shown_of_a_wrong_value_is_short() -> None:
    for value in ("x" * 100_000, {str(i): "y" * 1000 for i in range(50)}, {"a": {"b": "y" * 5000}}):
        found = refused_start(gender=value).found
        assert found is not None
        assert len(found) < 100


def test_a_transcript_is_split_at_its_labels() -> None:
    text = "\n\nUser: hi\nthere\n\n  assistant : hello: you\n\nUSER:\nAssistant: User: is a word\n"
    assert parse_transcript(text) == (
        Message("user", "hi\nthere"),
        Message("assistant", "hello: you"),
        Message("user", ""),
        Message("assistant", "User: is a word"),
    )


LINES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029:"))


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), LINES.map(str.strip))))
def test_a_transcript_reads_back_as_it_was_written(turns: list[tuple[str, str]]) -> None:
    text = "\n\n".join(f"{role.title()}: {content}" for role, content in turns)
    assert parse_transcript(text) == tuple(Message(role, content) for role, content in turns)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "session_id", "request_id", "gender", "persona_style", "personality", "persona_text", "chat_prompt", "history",
    "user_identity", "history_text", "user_utterance", "runtime_text", "sampling", "check_screen_prefix",
    "screen_checked_prefix", "personalities", "temperature", "top_k", "sanitize_output", "analysis_text", "cancel",
]  # fmt: skip
TYPES = ["start", "cancel", "end", "ping", "pong", "warm_persona", "warm_history", "chat_prompt", "followup", "x"]


def answerable(text: str) -> None:
    """Any text gives a message, or an error frame that can be sent."""
    try:
        message = DECODER.decode(text)
    except Rejected as rejected:
        frame = json.loads(frames.encode(rejection(rejected)))
        assert frame["type"] in ("error", "ack")
        assert frame["message"]
    else:
        assert isinstance(message, Inbound)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_an_error(data: bytes) -> None:
    answerable(data.decode("utf-8", "replace"))


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8), st.sampled_from(TYPES) | JSON)
def test_any_object_gives_a_message_or_an_error(fields: dict[str, Any], kind: Any) -> None:
    answerable(json.dumps({**fields, "type": kind}))


@given(st.text())
def test_any_text_gives_a_message_or_an_error(text: str) -> None:
    answerable(text)
