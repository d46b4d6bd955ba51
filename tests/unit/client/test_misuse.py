"""What people do to a client that no server should have to suffer, and nobody should have to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.scripted import KEY, REPLY, Running, ScriptedClassifier, ScriptedEngine, serving
from tests.harness.waiting import all_gone
from yap_client import (
    AuthenticationError,
    CapacityError,
    ClosedError,
    Message,
    RateLimitError,
    RefusedError,
    ServerGoneError,
    Talk,
    YapError,
    connect,
    connect_sync,
)
from yap_client.session import sendable, sendable_text

SAID = "".join(REPLY)
SECRET = "s3cret-k3y"
HALF = "Hi \ud83d"  # an emoji that was cut


@asynccontextmanager
async def talking(**options: Any) -> AsyncIterator[tuple[Running, Talk]]:
    async with serving(classifier=ScriptedClassifier()) as running:
        async with connect(running.url, KEY, **options) as talk:
            yield running, talk
        await all_gone(running)


@given(st.text(st.characters(categories=None) | st.sampled_from("\ud83d\ude00")))
def test_every_text_can_be_sent_and_those_that_could_stay_as_they_are(text: str) -> None:
    sent = sendable_text(text)
    sent.encode()
    if not any("\ud800" <= char <= "\udfff" for char in text):
        assert sent == text
    assert sendable({text: [text, 1, None, True, {"a": text}]}) == {sent: [sent, 1, None, True, {"a": sent}]}


async def test_half_an_emoji_is_sent_wherever_it_stands() -> None:
    history = [Message("user", HALF), {"role": "assistant", "content": HALF}]
    sampling: Any = {"stop": [HALF]}
    async with talking(session=HALF, persona=HALF, history=history, sampling=sampling) as (running, talk):
        assert (await talk.warm(persona=HALF, history=history, runtime_text=HALF)).tokens
        assert await talk.say(HALF, runtime_text=HALF).reply() == SAID
        assert await talk.followup(HALF, sampling=sampling).reply() == SAID
        await talk.set_persona(f"{HALF} again")
        assert await talk.say("", history=history).reply() == SAID
        assert "Hi \ufffd again" in " ".join(running.engine.prompts[-1])
        assert [message.content for message in talk.history] == ["Hi \ufffd", "Hi \ufffd", SAID]


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", object()])
async def test_what_is_no_text_is_refused_before_anything_is_changed(wrong: Any) -> None:
    async with talking() as (running, talk):
        story = talk.say("one")
        for call in (
            lambda: talk.say(wrong, heard=1, history=[], persona="You are Ann."),
            lambda: talk.followup(wrong, heard=1),
        ):
            with pytest.raises(TypeError, match="expected a text"):
                call()
        assert await story.reply() == SAID
        assert await talk.say("two").reply() == SAID
        assert "Ann" not in " ".join(running.engine.prompts[-1])
        assert len(talk.history) == 4


async def test_what_json_has_not_is_refused_and_holds_nothing_up() -> None:
    strange: Any = object()
    async with talking() as (_, talk):
        for call in (
            lambda: talk.say("one", traceparent=strange),
            lambda: talk.say("one", sampling={"seed": strange}),
            lambda: talk.followup("one", sampling={"seed": strange}),
        ):
            with pytest.raises(TypeError):
                call()
        with pytest.raises(TypeError):
            await talk.warm(persona=strange)
        assert await talk.say("two").reply() == SAID
        with pytest.raises(TypeError):
            await talk.heard(strange)
        assert await talk.say("three", heard=4).reply() == SAID


async def test_a_client_is_opened_once_and_says_nothing_before_and_after() -> None:
    async with serving() as running:
        talk = connect(running.url, KEY)
        with pytest.raises(ClosedError, match="not opened"):
            await talk.say("early").reply()
        with pytest.raises(ClosedError, match="not opened"):
            await talk.ping()
        async with talk:
            assert await talk.say("one").reply() == SAID
            with pytest.raises(ClosedError, match="already"):
                await talk.__aenter__()
            assert await talk.say("two").reply() == SAID
        with pytest.raises(ClosedError, match="already"):
            await talk.__aenter__()
        await all_gone(running)


async def test_a_client_that_found_no_server_can_be_opened_again() -> None:
    async with serving(opened=False) as running:
        talk = connect(running.url, KEY, backoff=None)
        with pytest.raises(YapError):
            await talk.__aenter__()
    async with serving(listens_on=running.port), talk:
        assert await talk.say("one").reply() == SAID


async def test_a_script_opens_its_client_once() -> None:
    async with serving(max_concurrent_connections=1, ws_handshake_acquire_timeout_s=0.01) as running:
        talk = connect_sync(running.url, KEY, backoff=None)
        async with connect(running.url, KEY):
            with pytest.raises(CapacityError):
                await asyncio.to_thread(talk.__enter__)
        await all_gone(running)
        with pytest.raises(ClosedError, match="already"):
            await asyncio.to_thread(talk.__enter__)

        def converse() -> list[str]:
            with connect_sync(running.url, KEY) as talk:
                said = [talk.say("one").reply()]
                with pytest.raises(ClosedError, match="already"):
                    talk.__enter__()
                return [*said, talk.say("two").reply()]

        assert await asyncio.to_thread(converse) == [SAID, SAID]
        await all_gone(running)


@pytest.mark.parametrize("key", [f"{SECRET}\nX: y", f"{SECRET}\0", f"ключ-{SECRET}"])
async def test_a_key_that_no_head_can_hold_is_refused_and_not_told(key: str) -> None:
    async with serving() as running:
        with pytest.raises(AuthenticationError, match="characters") as refused:
            await connect(running.url, key).__aenter__()
        assert SECRET not in str(refused.value)


async def test_a_key_of_a_file_that_ends_with_its_line_is_the_key() -> None:
    async with serving() as running, connect(running.url, f"{KEY}\r\n") as talk:
        assert await talk.say("one").reply() == SAID


@pytest.mark.parametrize(
    "url",
    [
        f"http://127.0.0.1:1/ws?api_key={SECRET}",
        f"ws://127.0.0.1:1/ws?api_key={SECRET}",
        f"ws://127.0.0.1:1/ws?api_key={SECRET}#page",
        f"ws://user:{SECRET}@127.0.0.1:1/ws",
        f"http://user:{SECRET}@127.0.0.1:1/ws",
        f"ws://user:{SECRET}@127.0.0.1:99999/ws",
        f"ws://?api_key={SECRET}",
    ],
)
async def test_no_error_tells_what_is_secret_in_an_address(url: str) -> None:
    with pytest.raises(YapError) as refused:
        await connect(url, backoff=None).__aenter__()
    assert SECRET not in str(refused.value)


async def test_whatever_breaks_the_client_itself_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as running:
        talk = await connect(running.url, KEY).__aenter__()
        turn = talk.say("one")
        monkeypatch.setattr(talk._dialogue, "received", lambda text: 1 / 0)
        await turn.wait()
        with pytest.raises(YapError, match="ZeroDivisionError"):
            await talk.say("two").reply()
        with pytest.raises(ZeroDivisionError):
            await talk.close()
        await all_gone(running)


def test_a_client_that_found_no_place_can_be_opened_again_in_another_loop() -> None:
    talk: list[Talk] = []

    async def full() -> int:
        async with serving(max_concurrent_connections=1, ws_handshake_acquire_timeout_s=0.01) as running:
            talk.append(connect(running.url, KEY, backoff=None))
            async with connect(running.url, KEY):
                with pytest.raises(CapacityError):
                    await talk[0].__aenter__()
            return running.port

    async def free(port: int) -> str:
        async with serving(listens_on=port), talk[0]:
            return await talk[0].say("one").reply()

    assert asyncio.run(free(asyncio.run(full()))) == SAID


@pytest.mark.parametrize("limited", [False, True], ids=["refused", "too early"])
async def test_who_asks_a_refused_turn_again_is_told_the_same(limited: bool) -> None:
    options: dict[str, Any] = {"ws_max_messages_per_window": 1} if limited else {}
    async with serving(**options) as running, connect(running.url, KEY) as talk:
        assert await talk.say("one").reply() == SAID
        turn = talk.say("two", sampling={"temperature": 7})
        with pytest.raises(RateLimitError if limited else RefusedError) as first:
            await turn.reply()
        for _ in range(2):
            with pytest.raises(RefusedError) as again:
                await turn.reply()
            assert again.value is first.value
        assert [event async for event in turn] == []


async def test_who_asks_a_turn_of_a_silent_server_again_is_told_the_same() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with serving(engine) as running, connect(running.url, KEY, silence=0.3) as talk:
        turn = talk.say("one")
        for _ in range(3):
            with pytest.raises(ServerGoneError, match="within"):
                await turn.reply()


async def test_a_refused_turn_tells_each_of_two_who_wait_for_it() -> None:
    async with talking() as (_, talk):
        turn = talk.say("one", sampling={"temperature": 7})
        told = await asyncio.gather(turn.reply(), turn.reply(), return_exceptions=True)
        assert [type(each) for each in told] == [RefusedError] * 2


async def test_a_whole_turn_says_the_same_as_often_as_it_is_asked() -> None:
    async with talking() as (_, talk):
        turn = talk.say("one")
        assert [await turn.reply() for _ in range(3)] == [SAID] * 3
