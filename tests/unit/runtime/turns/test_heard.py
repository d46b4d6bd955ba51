"""The history is what was said and heard: by `heard`, and by who ended a turn and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.engines import Delta, Sampling
from runtime.turns.sessions.heard import heard_chars
from runtime.wire.messages import Heard, Rejected
from tests.harness.scripted import Client, Running, ScriptedClassifier, ScriptedEngine, Words, serving
from tests.harness.waiting import eventually

REPLY = ("Sure, ", "let ", "me ", "see.")
WHOLE = "".join(REPLY)


class StallingEngine(ScriptedEngine):
    """Says so many words of its reply, and no more; all of them where `stall` is none.

    `stalls` says it by the prompt's last word: a turn may be asked of the engine after the next one was sent.
    """

    stall: int | None = None

    def __init__(self, stalls: Mapping[str, int | None] = MappingProxyType({})) -> None:
        super().__init__()
        self.stalls = stalls

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        self.prompts.append(Words.read(prompt))
        stall = self.stalls.get(self.prompts[-1][-1], self.stall)
        for index, text in enumerate(REPLY[:stall]):
            last = stall is None and index == len(REPLY) - 1
            on_delta(Delta(text, 1, "stop" if last else None))
        if stall is not None:
            await asyncio.Event().wait()


@dataclass(frozen=True)
class Spoken:
    """A turn of the property test.

    Attributes:
        end: how it ends.
        words: how many come before it is interrupted.
        heard: after how many characters of what was sent, and of what came before that; none says nothing.
        late: whether that is said after the `done`, where there is time for it.
        as_text: whether it is told by its text.
    """

    end: str
    words: int
    heard: tuple[int, ...]
    late: bool
    as_text: bool


TURNS = st.builds(
    Spoken,
    st.sampled_from(["done", "cancel", "barge-in"]),
    st.integers(0, len(REPLY) - 1),
    st.lists(st.integers(0, len(WHOLE)), max_size=3).map(tuple),
    st.booleans(),
    st.booleans(),
)


async def until_said(client: Client, text: str) -> None:
    """Receive tokens until they are a text."""
    said = ""
    while said != text:
        frame = await client.receive()
        said += frame["text"] if frame["type"] == "token" else ""


async def tell_heard(client: Client, turn: str, said: str, spoken: Spoken) -> str:
    """Send what was heard, and return what that leaves of the reply."""
    left = said
    for chars in spoken.heard:
        left = said[: min(chars, len(said))]
        told = {"text": left} if spoken.as_text else {"chars": len(left)}
        await client.send(type="heard", request_id=turn, **told)
        ack = await client.receive()
        assert (ack["type"], ack["for"], ack["ok"], ack["request_id"]) == ("ack", "heard", True, turn)
        assert said[: ack["chars"]].strip() == left.strip()
    return left


async def converse(turns: list[Spoken]) -> tuple[str, str]:
    """Have the turns, and return the next one's prompt, and what it should be."""
    stalls = {f"utterance{number}": None if turn.end == "done" else turn.words for number, turn in enumerate(turns)}
    engine = StallingEngine(stalls)
    expected: list[str] = []
    async with serving(engine) as running, running.client() as client:
        for number, spoken in enumerate(turns):
            turn = f"t{number}"
            said = WHOLE if spoken.end == "done" else "".join(REPLY[: spoken.words])
            await client.send(
                type="start",
                session_id="s1",
                request_id=turn,
                user_utterance=f"utterance{number}",
                sanitize_output=False,
            )
            while (await client.receive())["type"] != "ack":
                pass  # the end of a turn that this one barges in upon
            await until_said(client, said)
            left = said
            late = spoken.end == "done" or (spoken.late and spoken.end == "cancel")
            if not late:
                left = await tell_heard(client, turn, said, spoken)
            if spoken.end == "cancel":
                await client.send(type="cancel")
            if spoken.end != "barge-in":
                await client.until("done")
            if late:
                left = await tell_heard(client, turn, said, spoken)
            if said or spoken.end != "cancel":
                expected.append(f"[user] utterance{number}")
                expected += [f"[assistant] {left}"] if left.strip() else []
        await client.send(type="start", session_id="s1", user_utterance="last", request_id="last")
        while (await client.receive()).get("for") != "start":
            pass
        await eventually(lambda: engine.prompts and engine.prompts[-1][-1] == "last")
        return " ".join(engine.prompts[-1]), " ".join(" ".join([*expected, "[user] last"]).split())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TURNS, min_size=1, max_size=4))
def test_the_history_is_what_was_said_and_heard(turns: list[Spoken]) -> None:
    found, expected = asyncio.run(converse(turns))
    assert found == expected


@given(st.text("ab \n", max_size=20), st.integers(0, 25), st.booleans())
def test_a_beginning_of_a_reply_is_found_and_nothing_else(said: str, chars: int, as_text: bool) -> None:
    message = Heard(text=said[:chars]) if as_text else Heard(chars=chars)
    if not as_text and chars > len(said):
        with pytest.raises(Rejected):
            heard_chars(message, said)
        return
    found = heard_chars(message, said)
    assert said[:found].strip() == said[:chars].strip()
    assert found <= len(said)


@given(st.text("ab ", max_size=8), st.text("ab ", max_size=8))
def test_another_text_than_the_beginning_is_refused(said: str, text: str) -> None:
    if said.strip().startswith(text.strip()):
        assert said[: heard_chars(Heard(text=text), said)].strip() == text.strip()
    else:
        with pytest.raises(Rejected) as refusal:
            heard_chars(Heard(text=text), said)
        assert refusal.value.code == "invalid_text"


async def heard(client: Client, **fields: Any) -> dict[str, Any]:
    await client.send(type="heard", **fields)
    return await client.receive()


async def next_prompt(running: Running, client: Client) -> str:
    await client.turn(user_utterance="next", request_id="next")
    return " ".join(running.engine.prompts[-1])


async def test_heard_names_the_last_reply_until_the_next_turn_has_begun() -> None:
    async with serving(StallingEngine()) as running, running.client() as client:
        assert (await heard(client, text="x"))["error_code"] == "no_active_session"
        await client.turn(user_utterance="one", request_id="t1")
        assert (await heard(client, text="Sure", request_id="t0"))["error_code"] == "no_such_reply"
        assert (await heard(client, text="Shure", request_id="t1"))["error_code"] == "invalid_text"
        assert (await heard(client, chars=99, request_id="t1"))["error_code"] == "chars_out_of_range"
        assert (await heard(client, request_id="t1"))["error_code"] == "missing_text"
        assert (await heard(client, chars="x"))["error_code"] == "invalid_chars"
        assert (await heard(client, chars=5))["chars"] == 5
        assert "[assistant] Sure, [user] next" in await next_prompt(running, client)
        assert (await heard(client, text="", request_id="t1"))["error_code"] == "no_such_reply"


async def test_after_a_reconnect_heard_names_its_session_and_no_one_elses() -> None:
    async with serving(StallingEngine()) as running:
        async with running.client() as client, running.client() as other:
            await client.turn(user_utterance="one", request_id="t1")
            assert (await heard(other, session_id="s1", text=""))["error_code"] == "no_active_session"
        await eventually(lambda: not running.service.connections)
        async with running.client() as client:
            assert (await heard(client, session_id="s1", request_id="t1", text="Sure"))["session_id"] == "s1"
            assert "[assistant] Sure [user] next" in await next_prompt(running, client)


async def test_heard_has_no_limit_and_is_served_while_draining() -> None:
    async with serving(StallingEngine(), ws_max_messages_per_window=1) as running, running.client() as client:
        await client.turn(user_utterance="one", request_id="t1")
        for chars in range(len(WHOLE)):
            assert (await heard(client, chars=chars))["chars"] == chars
    engine = StallingEngine()
    engine.stall = 1
    async with serving(engine) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="one", sanitize_output=False)
        await client.until("token")
        running.service.drain()
        await client.until("draining")
        assert (await heard(client, text="Sure"))["chars"] == 4
        await client.send(type="cancel")
    async with serving(chat=False, classifier=ScriptedClassifier()) as running, running.client() as client:
        assert (await heard(client, text="x"))["error_code"] == "chat_not_deployed"


async def test_a_failed_turn_leaves_no_trace_whatever_was_heard() -> None:
    async with serving(ScriptedEngine(fail_after=2)) as running, running.client() as client:
        await client.turn(user_utterance="one", request_id="t1")
        assert (await heard(client, text="Sure", request_id="t1"))["ok"] is True
        running.engine.fail_after = None
        assert (await next_prompt(running, client)).strip() == "[user] next"


@pytest.mark.parametrize("classifier", [None, ScriptedClassifier(pause=30)])
async def test_the_words_of_a_turn_that_was_barged_in_upon_are_in_the_next_prompt(
    classifier: ScriptedClassifier | None,
) -> None:
    engine = StallingEngine()
    engine.stall = 0
    async with serving(engine, classifier) as running, running.client() as client:
        for number, words in enumerate(("book me a flight", "to Paris", "on Tuesday")):
            await client.send(type="start", session_id="s1", user_utterance=words, request_id=number)
            while (await client.receive()).get("for") != "start":
                pass
        await eventually(lambda: engine.prompts and engine.prompts[-1][-1] == "Tuesday")
        assert " ".join(engine.prompts[-1]).strip() == "[user] book me a flight [user] to Paris [user] on Tuesday"
        if classifier is not None:
            assert classifier.asked[-1] == (["book me a flight", "to Paris"], "on Tuesday")


async def test_a_barge_in_above_the_limit_and_a_takeover_keep_the_words_too() -> None:
    engine = StallingEngine()
    engine.stall = 0
    async with serving(engine, ws_max_messages_per_window=1) as running, running.client() as first:
        await first.send(type="start", session_id="s1", user_utterance="one")
        await first.until("ack")
        await first.send(type="start", session_id="s1", user_utterance="lost")
        await first.until("done")
        async with running.client() as second, running.client() as third:
            await second.send(type="start", session_id="s1", user_utterance="two")
            await second.until("ack")
            await eventually(lambda: len(engine.prompts) == 2)
            engine.stall = None
            await third.turn(user_utterance="three")
        assert " ".join(engine.prompts[-1]).strip() == "[user] one [user] two [user] three"
