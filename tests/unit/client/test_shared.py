"""A session in which two clients talk: each knows that it has not all, and puts nothing over the other's words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.harness.scripted import KEY, REPLY, Running, ScriptedEngine, serving
from tests.harness.waiting import all_gone, eventually
from yap_client import Backoff, Talk, connect

SAID = "".join(REPLY)
SOON = Backoff(first=0.01, most=0.05, within=30)


@asynccontextmanager
async def talking(running: Running, *, given: bool = False) -> AsyncIterator[Talk]:
    history = [] if given else None
    async with connect(running.url, KEY, session="s1", history=history, backoff=SOON) as talk:
        yield talk


def prompt(running: Running) -> str:
    return " ".join(running.engine.prompts[-1])


async def lose(talk: Talk) -> None:
    """Lose the connection, as a network does, and have the client notice."""
    lost = talk._connection.socket
    assert lost is not None
    lost.transport.abort()
    await eventually(lambda: talk._connection.socket not in (None, lost))


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("turns", [0, 1, 2])
@pytest.mark.parametrize("heard", [None, 4])
async def test_who_speaks_after_another_knows_that_it_has_not_all(stays: bool, turns: int, heard: int | None) -> None:
    async with serving() as running, AsyncExitStack() as others, talking(running) as talk:
        for number in range(turns):
            await talk.say(f"mine {number}").reply()
        await eventually(lambda: talk.transcript.complete)
        async with AsyncExitStack() as other:
            second = await other.enter_async_context(talking(running))
            assert await second.say("theirs").reply() == SAID
            if stays:
                others.push_async_callback(other.pop_all().aclose)
        if not stays:
            await all_gone(running, but=1)
        assert await talk.say("mine again", heard=heard).reply() == SAID
        assert not talk.transcript.complete
        assert "[user] theirs" in prompt(running)


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_who_speaks_alone_has_all_of_a_session_that_was_named(turns: int) -> None:
    async with serving() as running, talking(running) as talk:
        for number in range(turns):
            await talk.say(f"mine {number}").reply()
            if number:
                await talk.heard("Sure")
        assert talk.prepare("mine again")
        await eventually(lambda: len(running.engine.prompts) > turns)
        turn = talk.say("mine again")
        assert await turn.reply() == SAID
        assert turn.usage is not None
        assert turn.usage.prepared, "what is asked before a turn withdraws nothing that is ready"
        assert talk.transcript.complete
        assert [message.content for message in talk.history].count("Sure") == max(0, turns - 1)


async def test_a_turn_that_is_cancelled_at_once_puts_nothing_over_what_another_said() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as running, talking(running) as talk:
        await talk.say("mine").reply()
        async with talking(running) as other:
            await other.say("theirs").reply()
        talk.say("one")
        talk.say("two")
        await talk.cancel()
        assert await talk.say("three").reply() == SAID
        assert "[user] theirs" in prompt(running)
        assert not talk.transcript.complete


@pytest.mark.parametrize("stays", [True, False])
async def test_who_comes_back_after_another_knows_that_it_has_not_all(stays: bool) -> None:
    async with serving() as running, AsyncExitStack() as others, talking(running) as talk:
        await talk.say("mine").reply()
        async with AsyncExitStack() as other:
            second = await other.enter_async_context(talking(running))
            await second.say("theirs").reply()
            if stays:
                others.push_async_callback(other.pop_all().aclose)
        await lose(talk)
        assert await talk.say("mine again").reply() == SAID
        assert not talk.transcript.complete
        assert "[user] theirs" in prompt(running)


async def test_who_was_lost_before_its_first_turn_puts_nothing_over_what_another_said() -> None:
    async with serving(ScriptedEngine()) as running, talking(running) as talk:
        await eventually(lambda: talk.transcript.complete)
        async with talking(running) as other:
            await other.say("theirs").reply()
            turn = talk.say("lost on its way")
            socket = talk._connection.socket
            assert socket is not None
            socket.transport.abort()
            await turn.wait()
            await eventually(lambda: talk._connection.socket not in (None, socket))
        assert await talk.say("mine").reply() == SAID
        assert "[user] theirs" in prompt(running)


async def test_a_session_whose_history_was_given_is_the_givers() -> None:
    async with serving() as running, talking(running, given=True) as talk:
        await talk.say("mine").reply()
        assert talk.transcript.complete
