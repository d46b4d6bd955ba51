"""A field that was probably misspelt is told in the `ack`; any other unknown one is ignored in silence."""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.wire.decoder import Decoder
from runtime.wire.messages import Rejected
from runtime.wire.near_names import LIKENESS, near
from runtime.wire.unknown_fields import KNOWN, MOST, SAMPLING, warnings
from tests.harness.scripted import ScriptedEngine, serving

LEAST: Mapping[str, dict[str, object]] = {
    "start": {"session_id": "s"},
    "followup": {"analysis_text": "a window"},
    "chat_prompt": {"persona_text": "you"},
    "heard": {"chars": 3},
    "warm_persona": {"persona_text": "you"},
    "warm_history": {"history": []},
}


def decoded(kind: str, **extra: object) -> tuple[str, ...]:
    return Decoder().decode(json.dumps({"type": kind, **LEAST[kind], **extra})).warnings


class Asked(dict[str, object]):
    """A message that remembers which of its fields were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
        self.names.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("kind", LEAST)
def test_every_field_that_is_read_is_known(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    asked.update({"type": kind, **LEAST[kind]})
    decoder = Decoder()
    monkeypatch.setattr(decoder, "_object", lambda text: asked)
    decoder.decode("{}")
    assert asked.names - {"cancel", "end"} <= KNOWN[kind]


@pytest.mark.parametrize("kind", LEAST)
def test_known_fields_need_no_warning(kind: str) -> None:
    assert warnings(kind, dict.fromkeys(KNOWN[kind])) == ()
    assert warnings(kind, {"sampling": dict.fromkeys(SAMPLING)}) == ()


@given(st.sampled_from(sorted(LEAST)), st.data())
def test_a_letter_wrong_is_told(kind: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(field for field in KNOWN[kind] if len(field) >= 8)))
    place = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from(string.ascii_lowercase))
    wrong = data.draw(
        st.sampled_from(
            (
                name[:place] + name[place + 1 :],
                name[:place] + letter + name[place:],
                name[:place] + name[place + 1 : place + 2] + name[place] + name[place + 2 :],
                name.upper(),
                name.replace("_", "-"),
            )
        )
    )
    if wrong in KNOWN[kind]:
        return
    (told,) = decoded(kind, **{wrong: None})
    assert told.startswith(f"{wrong}: unknown, and ignored; did you mean ")


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("user_uterance", "user_utterance"),
        ("userUtterance", "user_utterance"),
        ("personna_text", "persona_text"),
        ("temprature", "temperature"),
        ("top-p", "top_p"),
        ("sesion_id", "session_id"),
    ],
)
def test_what_was_meant_is_named(field: str, meant: str) -> None:
    assert decoded("start", **{field: 1}) == (f"{field}: unknown, and ignored; did you mean {meant}?",)


def test_a_sampling_field_is_told_with_its_path() -> None:
    assert decoded("followup", sampling={"sanitise_output": True, "temprature": 1, "colour": 1}) == (
        "sampling.sanitise_output: unknown, and ignored; did you mean sampling.sanitize_output?",
        "sampling.temprature: unknown, and ignored; did you mean sampling.temperature?",
    )


@pytest.mark.parametrize("field", ["colour", "x", "", "client_version", "trace_id", "é" * 1000, "analysis"])
def test_a_field_of_the_clients_own_is_nobodys_business(field: str) -> None:
    assert decoded("start", **{field: 1}) == ()


@given(st.dictionaries(st.text(max_size=80), st.none(), max_size=200), st.sampled_from(sorted(KNOWN)))
def test_whatever_comes_the_answer_is_small(raw: dict[str, object], kind: str) -> None:
    told = warnings(kind, {**raw, "sampling": raw})
    assert len(told) <= 2 * MOST
    assert all(len(line) < 250 for line in told)


@given(st.text(max_size=70), st.lists(st.sampled_from(sorted(KNOWN["start"])), max_size=10))
def test_what_is_near_is_known(name: str, known: list[str]) -> None:
    assert near(name, known) in {None, *known}


def likeness(one: str, other: str) -> float:
    """How much of two names are letters that both have in the same order, as the book has it."""
    longest = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, letter in enumerate(one):
        for j, its in enumerate(other):
            longer = max(longest[i][j + 1], longest[i + 1][j])
            longest[i + 1][j + 1] = longest[i][j] + 1 if letter == its else longer
    return 2 * longest[-1][-1] / (len(one) + len(other))


@given(
    st.sampled_from(sorted(KNOWN["start"])),
    st.lists(st.tuples(st.integers(0, 24), st.sampled_from(["", "e", "t", "q", "é", "\u0451"])), max_size=4),
)
def test_no_name_that_is_alike_is_passed_over(meant: str, edits: list[tuple[int, str]]) -> None:
    name = meant.replace("_", "")
    for place, letter in edits:
        name = name[:place] + letter + name[place + 1 :] if place % 2 else name[:place] + letter + name[place:]
    known = {one: one.replace("_", "") for one in KNOWN["start"]}
    best = max(likeness(name, plain) for plain in known.values()) if name else 0.0
    found = near(name, known)
    if best >= LIKENESS:
        assert found is not None
        assert likeness(name, known[found]) == best
    else:  # but for two letters that changed places
        assert found is None or sorted(known[found]) == sorted(name)


def steps_of(text: str) -> int:
    """Functions that reading a message calls, those of C too."""
    steps = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    decoder = Decoder()
    sys.setprofile(count)
    try:
        decoder.decode(text)
    finally:
        sys.setprofile(None)
    return steps


@given(st.tuples(st.permutations("requestidx"), st.permutations("sessionidtex"), st.permutations("requestid")))
def test_names_that_are_almost_alike_cost_little(names: tuple[list[str], ...]) -> None:
    def message(**extra: object) -> str:
        return json.dumps({"type": "heard", "chars": 0, **extra})

    steps_of(message(**dict.fromkeys(map("".join, names), 1)))  # what is known of a length is found out once
    costs = steps_of(message(**{"".join(name)[::-1]: 1 for name in names})) - steps_of(message())
    assert costs < 90 * len(names)


@given(st.sampled_from(sorted(KNOWN["start"])))
def test_a_name_is_nearest_to_itself(name: str) -> None:
    assert near(name, KNOWN["start"]) == name


async def test_each_ack_tells_of_its_message_and_nothing_where_all_is_well() -> None:
    async with serving(ScriptedEngine()) as running, running.client() as client:
        (ack, *_) = await client.turn(user_uterance="hi", sampling={"temprature": 1})
        assert ack["warning"] == [
            "user_uterance: unknown, and ignored; did you mean user_utterance?",
            "sampling.temprature: unknown, and ignored; did you mean sampling.temperature?",
        ]
        (ack, *_) = await client.turn(user_utterance="hi")
        assert "warning" not in ack
        await client.send(type="followup", analysis_text="a window", sessionid="s1")
        assert (await client.until("done"))[0]["warning"]
        await client.send(type="chat_prompt", persona_text="you", gendre="woman")
        assert "gendre" in (await client.receive())["warning"][0]
        await client.send(type="heard", chars=0, sesion_id="s1")
        assert "sesion_id" in (await client.receive())["warning"][0]
        await client.send(type="warm_history", history=[], persona_tekst="you")
        assert "persona_tekst" in (await client.receive())["warning"][0]
        await client.send(type="warm_persona", persona_text="you")
        assert "warning" not in await client.receive()


def test_what_is_missing_may_be_there_under_another_name() -> None:
    for kind, wrong in (("start", "sesion_id"), ("followup", "analysis_txt"), ("chat_prompt", "personaText")):
        with pytest.raises(Rejected) as caught:
            Decoder().decode(json.dumps({"type": kind, wrong: "x"}))
        assert caught.value.found == f"nothing but {wrong}"
        assert caught.value.code.startswith("missing_")
    with pytest.raises(Rejected) as caught:
        Decoder().decode('{"type":"start","colour":1}')
    assert caught.value.found == "nothing"
