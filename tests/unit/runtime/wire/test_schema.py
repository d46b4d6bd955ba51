"""The schema of all messages: what fits it the decoder takes, both know the same fields, and real frames fit it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.wire import schema, unknown_fields
from runtime.wire.decoder import Decoder
from runtime.wire.messages import Rejected
from tests.harness.scripted import ScriptedClassifier, serving

DOCUMENT = schema.schema()
DEFS = DOCUMENT["$defs"]
PAGE = (Path(__file__).parents[4] / "docs/protocol.md").read_text("utf-8")


def validator(name: str) -> jsonschema.protocols.Validator:
    return jsonschema.Draft202012Validator({**DOCUMENT, "anyOf": [{"$ref": f"#/$defs/{name}"}]})


CLIENT, SERVER = validator("client"), validator("server")


def values(part: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that fit a part of the schema."""
    if "$ref" in part:
        return values(DEFS[part["$ref"].rpartition("/")[2]])
    if "const" in part:
        return st.just(part["const"])
    if "enum" in part:
        return st.sampled_from(part["enum"])
    if "type" not in part:
        return st.one_of([values(one) for one in part["anyOf"]])
    kind = part["type"]
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        return st.integers(part["minimum"], part["maximum"])
    if kind == "number":
        return st.floats(part.get("minimum"), part.get("maximum"), allow_nan=False, allow_infinity=False)
    if kind == "array":
        return st.lists(values(part["items"]), max_size=min(part.get("maxItems", 5), 5))
    if kind == "object" and "properties" not in part:
        return st.dictionaries(st.text(max_size=5), values(part["additionalProperties"]), max_size=3)
    if kind == "object":
        return objects(part)
    characters = st.characters(exclude_categories=["Cs"])
    if "pattern" in part:
        return st.from_regex(part["pattern"], alphabet=characters)
    return st.text(characters, min_size=part.get("minLength", 0), max_size=min(part.get("maxLength", 40), 400))


@st.composite
def objects(draw: st.DrawFn, part: dict[str, Any]) -> dict[str, Any]:
    """An object with what it must have, and some of what it may."""
    required = set(part.get("required", ()))
    if "anyOf" in part:
        required |= set(draw(st.sampled_from(part["anyOf"]))["required"])
    return {
        name: draw(values(inner))
        for name, inner in part["properties"].items()
        if name in required or draw(st.booleans())
    }


@pytest.mark.parametrize("kind", schema.CLIENT_MESSAGES)
@settings(max_examples=30)
@given(data=st.data())
def test_what_fits_is_taken(kind: str, data: st.DataObject) -> None:
    message = data.draw(values(DEFS[f"client.{kind}"]).filter(CLIENT.is_valid))
    assert Decoder().decode(json.dumps(message)) is not None


@pytest.mark.parametrize("kind", schema.CLIENT_MESSAGES)
@settings(max_examples=30)
@given(data=st.data())
def test_what_the_decoder_refuses_does_not_fit(kind: str, data: st.DataObject) -> None:
    """A required field is left out, or a value is of another kind."""
    message = data.draw(values(DEFS[f"client.{kind}"]).filter(CLIENT.is_valid))
    name = data.draw(st.sampled_from(sorted(message)))
    broken = {**message, name: data.draw(st.sampled_from([[], {}, 7, "", True, -1, "x" * 300]))}
    if name == "type" or data.draw(st.booleans()):
        broken.pop(name)
    try:
        Decoder().decode(json.dumps(broken))
    except Rejected:
        assert not CLIENT.is_valid(broken)


def test_both_know_the_same_fields() -> None:
    sampling = set(DEFS["sampling"]["properties"])
    assert sampling == unknown_fields.SAMPLING
    for kind, known in unknown_fields.KNOWN.items():
        here = set(DEFS[f"client.{kind}"]["properties"])
        assert here == set(known) - (sampling if "sampling" in known else set()) | {"type", "request_id"}
    assert set(schema.CLIENT_MESSAGES) == set(Decoder()._readers)


def examples() -> list[tuple[str, str]]:
    """Whole messages of the page, with who says them."""
    found = re.findall(r"^([→←]) (\{.*\})$", PAGE, re.M)
    return [(arrow, text) for arrow, text in found if "…" not in text]


def test_the_pages_examples_fit() -> None:
    assert len(examples()) > 8
    for arrow, text in examples():
        (CLIENT if arrow == "→" else SERVER).validate(json.loads(text))


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "token", "text": ""},
        {"type": "done"},
        {"type": "done", "usage": None},
        {"type": "done", "cancelled": False},
        {"type": "done", "cancelled": True, "failed": True},
    ],
)
def test_what_no_server_sends_does_not_fit(frame: dict[str, Any]) -> None:
    assert not SERVER.is_valid(frame)


async def test_what_a_server_sends_fits() -> None:
    """Each kind of frame, from a server that runs."""
    seen: set[str] = set()

    def check(frames: list[dict[str, Any]]) -> None:
        for frame in frames:
            SERVER.validate(frame)
            seen.add(frame["type"])

    async with serving(classifier=ScriptedClassifier()) as running, running.client() as client:
        check(await client.turn(user_utterance="look", request_id=1, temprature=1))
        for message in (
            {"type": "heard", "chars": 2},
            {"type": "chat_prompt", "persona_text": "You are Mia."},
            {"type": "chat_prompt"},
            {"type": "warm_persona", "persona_text": "You are Mia."},
            {"type": "cancel", "request_id": "c"},
            {"type": "ping"},
            {"type": "start"},
            {"type": "nonsense"},
        ):
            await client.send(**message)
            check([await client.receive()])
        await client.send(type="end")
        check([await client.receive()])
        async with running.client(key="wrong") as stranger:
            check([await stranger.receive()])
        async with running.client() as other:
            await other.send(type="ping")
            await other.receive()
            running.service.drain()
            check([await other.receive()])
    assert seen >= {
        "ack",
        "toolcall",
        "token",
        "final",
        "done",
        "warmed",
        "error",
        "pong",
        "connection_closed",
        "draining",
    }
