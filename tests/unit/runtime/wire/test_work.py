"""What it costs to read a message grows with its size and no faster, whatever stands in it."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import sys
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.text.prompt import Message
from runtime.wire.decoder import Decoder
from runtime.wire.fields import ROLES, parse_transcript
from runtime.wire.messages import MAX_HISTORY_MESSAGES, MAX_NUMBER_CHARS, Rejected
from tests.harness.costs.growth import assert_linear

DECODER = Decoder()
TYPES = ("start", "followup", "chat_prompt", "warm_persona", "warm_history", "cancel", "end", "ping", "pong", "other")
FIELDS = [
    *("type", "request_id", "session_id", "gender", "personality", "persona_style", "persona_text", "chat_prompt"),
    *("user_identity", "history", "history_text", "user_utterance", "runtime_text", "analysis_text", "personalities"),
    *("check_screen_prefix", "screen_checked_prefix", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("sanitize_output", "sampling"),
]
# Units that long texts are made of: what patterns of numbers, labels, spaces and cases could stumble over.
UNITS = [
    "9",
    "9.",
    ".",
    "e",
    " ",
    "\t",
    "\n",
    "user",
    "user:",
    "user:\n",
    "\nuser \t",
    "-",
    "+9",
    "x",
    "İ",
    "🙂",
    "\\",
    "\ud800",
]


def read(text: str) -> None:
    with contextlib.suppress(Rejected):
        DECODER.decode(text)


# A value of each shape in which a client can send a long text.
SHAPES: dict[str, Callable[[str], object]] = {
    "a string": lambda text: text,
    "a string that almost fits": lambda text: "User: " + text + "!",
    "a list of strings": list,
    "a history": lambda text: [{"role": "user", "content": char} for char in text[: len(text) // 20]],
    "roles": lambda text: [{"role": text, "content": ""}],
    "sampling": lambda text: {"temperature": text + "x", "top_k": text},
}


@given(
    kind=st.sampled_from(TYPES),
    field=st.sampled_from(FIELDS),
    shape=st.sampled_from(sorted(SHAPES)),
    unit=st.sampled_from(UNITS),
)
def test_reading_is_linear_in_every_field_of_every_type(kind: str, field: str, shape: str, unit: str) -> None:
    message = {"type": kind, "session_id": "s", "analysis_text": "a"}
    assert_linear(lambda text: read(json.dumps(message | {field: SHAPES[shape](text)})), unit, characters=4_000)


def calls_of(text: str) -> int:
    """Functions written in Python that reading a text calls."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        read(text)
    finally:
        sys.setprofile(None)
    return calls


# What a string may hold that has to be looked at where a text is no JSON: escapes, and halves of pairs.
ESCAPES = ["\\n", "\\\\", '\\"', "\\ud83d", "\\ude00", "\\ud83d\\ude00", "\\\\ud83d", "\\u0041", "\\x", "\\"]


@pytest.mark.parametrize("end", ["", '"}', '\\ud83d"}', '\0\\ud83d"}'])
@pytest.mark.parametrize("escape", ESCAPES)
def test_no_escape_of_a_text_costs_a_call(escape: str, end: str) -> None:
    def message(escapes: int) -> str:
        return '{"type":"ping","x":"' + escape * escapes + end

    read(message(1))  # what is kept of an error is kept
    assert abs(calls_of(message(2000)) - calls_of(message(2))) < 10


@pytest.mark.parametrize("escape", ESCAPES)
def test_texts_of_escapes_are_read_in_linear_time(escape: str) -> None:
    for end in ("", '\\ud83d"}'):
        assert_linear(lambda text: read('{"type":"ping","x":"' + text + end), escape)  # noqa: B023


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("field", ["temperature", "history_text"])
def test_what_is_matched_by_patterns_is_read_in_linear_time(field: str, unit: str) -> None:
    message = {"type": "start", "session_id": "s"}
    for before, after in (("", ""), ("", "x"), ("User:", ""), ("User: ", "x")):
        assert_linear(lambda text: read(json.dumps(message | {field: before + text + after})), unit)  # noqa: B023


def test_a_number_longer_than_any_is_refused_by_its_length() -> None:
    for digits in ("1", "0"):
        fits = {"type": "start", "session_id": "s", "sampling": {"temperature": "0." + digits * (MAX_NUMBER_CHARS - 2)}}
        DECODER.decode(json.dumps(fits))
        fits["sampling"] = {"temperature": "0." + digits * (MAX_NUMBER_CHARS - 1)}
        with pytest.raises(Rejected) as refused:
            DECODER.decode(json.dumps(fits))
        assert refused.value.code == "invalid_temperature"
        assert len(refused.value.message) < 300


LABEL = re.compile(r"^[ \t]*([uU][sS][eE][rR]|[aA][sS]{2}[iI][sS][tT][aA][nN][tT])[ \t]*:", re.MULTILINE)
PARTS = ["User:", "assistant :", " \tUSER:", "\n", "\r\n", "\x0b", "\u2003", " ", "hi", "user", ":", "x" * 50_000]
# What ignoring the case takes for a letter of a label, or makes one of.
LIKE_LABELS = ["u\u017fer:", "A\u017f\u017fistant:", "ass\u0131stant:", "ass\u0130stant:"]
LINES = st.lists(st.sampled_from([*PARTS, *LIKE_LABELS]), max_size=30).map("".join)


@given(text=LINES)
def test_a_transcript_is_what_lies_between_its_labels(text: str) -> None:
    parts = LABEL.split(text)
    expected = [Message(r.lower(), c.strip()) for r, c in zip(parts[1::2], parts[2::2], strict=True)]
    assert {message.role for message in expected} <= set(ROLES)
    if parts[0].strip():
        with pytest.raises(ValueError, match="before the first label"):
            parse_transcript(text)
    else:
        assert parse_transcript(text) == tuple(expected)


def test_of_more_messages_than_are_kept_the_newest_are_taken() -> None:
    count = MAX_HISTORY_MESSAGES + 10
    transcript = "\n".join(f"User: {n}{' long' * 20}" for n in range(count))
    entries = [{"role": "user", "content": f"{n}{' long' * 20}"} for n in range(count)]
    taken = parse_transcript(transcript)
    assert len(taken) == MAX_HISTORY_MESSAGES
    assert taken[-1].content.startswith(f"{count - 1} ")
    assert taken[0].content.startswith("10 ")
    assert DECODER.decode(json.dumps({"type": "warm_history", "history": entries})).history == taken  # type: ignore[attr-defined]


PLACES: dict[str, Callable[[str], object]] = {
    "a name": lambda text: {text: 1},
    "a name like a known one": lambda text: {f"user_utterance{text}": 1},
    "a name of sampling": lambda text: {"sampling": {f"temperature{text}": 1}},
    "a text": lambda text: {"user_utterance": text, "analysis_text": text},
    "a type": lambda text: {"type": text},
    "an identifier": lambda text: {"request_id": text, "session_id": text},
    "a number": lambda text: {"temperature": text, "seed": text},
    "a style": lambda text: {"gender": text, "personality": text},
    "history": lambda text: {"history": [{"role": "user", "content": text}]},
    "a stop": lambda text: {"stop": [text]},
    "a trace": lambda text: {"traceparent": text},
}


@pytest.mark.parametrize("place", PLACES)
def test_nothing_of_a_message_is_kept_that_was_read_and_dropped(place: str) -> None:
    def read_many(first: int) -> None:
        for number in range(first, first + 60):
            value = PLACES[place](f"{number:06}" + "x" * 50_000)
            assert isinstance(value, dict)
            for kind in ("start", "followup", "warm_history"):
                read(json.dumps({"type": kind, "session_id": "s", "analysis_text": "a"} | value))

    read_many(0)  # what is made once
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        read_many(1000)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept < 500_000  # of 3 MB
