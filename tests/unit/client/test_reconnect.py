"""Losses between a client and servers on real sockets: what is said again, what is not, and what the history has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import serve

from runtime.wire.decoder import Decoder
from tests.harness.scripted import KEY, REPLY, Running, ScriptedClassifier, ScriptedEngine, serving
from tests.harness.scripted import settings as server_settings
from tests.harness.stores.session_store import StandIn
from tests.harness.waiting import all_gone, eventually
from yap_client import Ack, Backoff, Done, Interrupted, ServerGoneError, Talk, Token, ToolCall, Turn, TurnEvent, connect
from yap_client.session import SCREEN_CHECKED_PREFIX

LONG = ["word "] * 300
SAID = "".join(REPLY)
SOON = Backoff(first=0.01, most=0.05, within=30)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every message that a server of this process reads."""
    seen: list[dict[str, Any]] = []
    decode = Decoder.decode

    def record(self: Decoder, text: str) -> Any:
        seen.append(json.loads(text))
        return decode(self, text)

    monkeypatch.setattr(Decoder, "decode", record)
    return seen


@asynccontextmanager
async def talking(running: Running, **options: Any) -> AsyncIterator[Talk]:
    async with connect(running.url, KEY, session="s1", persona="You are Mia.", backoff=SOON, **options) as talk:
        yield talk


def cut(talk: Talk) -> None:
    """Lose the connection, as a network does."""
    if talk._connection.socket is not None:
        talk._connection.socket.transport.abort()


async def lose(talk: Talk) -> None:
    """Lose the connection, and have the client notice."""
    lost = talk._connection.socket
    cut(talk)
    await eventually(lambda: talk._connection.socket is not lost)


def prompt(running: Running) -> str:
    return " ".join(running.engine.prompts[-1])


async def first_token(turn: Turn) -> None:
    while not isinstance(await turn.__anext__(), Token):
        pass


async def test_a_server_that_knows_the_session_gets_neither_persona_nor_history_again(
    messages: list[dict[str, Any]],
) -> None:
    async with serving() as running, talking(running) as talk:
        await talk.say("one").reply()
        await lose(talk)
        assert await talk.say("two").reply() == SAID
        await lose(talk)
        assert await talk.followup("a cat").reply() == SAID
        assert prompt(running).count("You are Mia.") == 1
        assert prompt(running).count(SAID) == 2
    starts = [message for message in messages if message["type"] in ("start", "followup")]
    assert [set(start) - {"type", "request_id", "session_id"} for start in starts] == [
        {"persona_text", "user_utterance"},
        {"user_utterance"},
        {"analysis_text"},
    ]


async def test_a_server_that_does_not_know_it_gets_both_once(messages: list[dict[str, Any]]) -> None:
    async with AsyncExitStack() as first:
        running = await first.enter_async_context(serving())
        async with talking(running, history=[{"role": "user", "content": "before"}]) as talk:
            await talk.say("one", sampling={"temperature": 0.5}).reply()
            await first.aclose()
            waiting = talk.say("two")
            async with serving(listens_on=running.port) as after:
                assert await waiting.reply() == SAID
                assert await talk.followup("a cat").reply() == SAID
                found, then = [" ".join(words) for words in after.engine.prompts]
                assert after.engine.samplings[0].temperature == 0.5
    assert found == f"[system] You are Mia. [user] before [user] one [assistant] {SAID} [user] two"
    assert then.startswith(f"{found} [assistant] {SAID} [user]")
    starts = [message for message in messages if message["type"] == "start"]
    assert ["history" in start for start in starts] == [True, True]


async def test_a_followup_brings_a_server_to_know_the_session_too() -> None:
    async with AsyncExitStack() as first:
        running = await first.enter_async_context(serving(classifier=ScriptedClassifier()))
        async with talking(running) as talk:
            await talk.say("look").reply()
            await first.aclose()
            async with serving(classifier=ScriptedClassifier(), listens_on=running.port) as after:
                events = [event async for event in talk.followup("a look at a cat")]
                found = " ".join(after.engine.prompts[-1])
    assert not [event for event in events if isinstance(event, ToolCall)], "a followup has no decision"
    assert found.startswith(f"[system] You are Mia. [user] look [assistant] {SAID} [user]")
    assert found.endswith("a look at a cat")


async def test_a_server_that_drains_ends_its_turn_and_the_next_one_waits_for_another() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with AsyncExitStack() as first:
        running = await first.enter_async_context(serving(engine))
        async with talking(running) as talk:
            turn = talk.say("one")
            await eventually(lambda: engine.held)
            running.service.drain()
            assert engine.gate is not None
            engine.gate.set()
            assert await turn.reply() == SAID
            waiting = talk.say("two")
            await first.aclose()
            async with serving(listens_on=running.port) as after:
                assert await waiting.reply() == SAID
                assert prompt(after) == f"[system] You are Mia. [user] one [assistant] {SAID} [user] two"


async def test_a_turn_that_a_drain_cuts_is_interrupted_once() -> None:
    async with serving(ScriptedEngine(reply=LONG, pause=0.01), drain_timeout_s=0) as running, talking(running) as talk:
        turn = talk.say("one")
        await first_token(turn)
        running.service.drain()
        ends = [event async for event in turn if not isinstance(event, Token)]
    assert len(ends) == 1
    assert isinstance(ends[0], Interrupted)
    assert ends[0].begun
    assert ends[0].said.startswith("Word")


async def test_who_gives_up_says_so_and_the_next_turn_tries_again() -> None:
    async with AsyncExitStack() as first:
        running = await first.enter_async_context(serving())
        patience = Backoff(first=0.01, most=0.02, within=0.2)
        async with connect(running.url, KEY, backoff=patience) as talk:
            await talk.say("one").reply()
            await first.aclose()
            with pytest.raises(ServerGoneError, match="cannot reach"):
                await talk.say("two").reply()
            with pytest.raises(ServerGoneError):
                await talk.ping()
            async with serving(listens_on=running.port) as after:
                assert await talk.say("three").reply() == SAID
                assert "one" in prompt(after)


async def test_without_backoff_nothing_is_tried_again() -> None:
    engine = ScriptedEngine(reply=LONG, pause=0.01)
    async with serving(engine) as running, connect(running.url, KEY, backoff=None) as talk:
        turn = talk.say("one")
        await first_token(turn)
        cut(talk)
        events = [event async for event in turn]
        assert isinstance(events[-1], Interrupted)
        with pytest.raises(ServerGoneError):
            await talk.say("two").reply()


async def test_a_server_that_takes_a_client_and_says_nothing_is_given_up() -> None:
    async with serve(lambda socket: socket.wait_closed(), "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        with pytest.raises(ServerGoneError, match="1006"):
            async with connect(f"ws://127.0.0.1:{port}", open_timeout=0.2):
                pass


async def test_a_key_that_is_taken_away_is_never_tried_again() -> None:
    async with serving() as running, talking(running) as talk:
        await talk.say("one").reply()
        for connection in list(running.service.connections):
            connection.close(1008, "key_removed")
        await all_gone(running)
        with pytest.raises(Exception, match="1008 key_removed"):
            await talk.say("two").reply()


async def test_another_client_that_takes_the_session_over_ends_the_turn() -> None:
    async with serving(ScriptedEngine(reply=LONG, pause=0.01)) as running, talking(running) as talk:
        turn = talk.say("one")
        await first_token(turn)
        async with connect(running.url, KEY, session="s1") as other:
            running.engine.reply = REPLY
            assert await other.say("two").reply() == SAID
        events = [event async for event in turn]
        assert events[-1] == Done(request_id=turn.request_id, cancelled=True)
        await lose(talk)
        assert await talk.say("three").reply() == SAID
        assert prompt(running).endswith(f"[user] two [assistant] {SAID} [user] three"), "nobody's words are lost"


def die(running: Running) -> None:
    """Let nothing of a server reach the store any more, as if it were killed now."""
    keeper = running.service._keeper
    assert keeper is not None
    keeper._writer.store = StandIn(down=True)


async def written(running: Running) -> None:
    """Wait until all that has changed is in the store."""
    keeper = running.service._keeper
    assert keeper is not None
    await eventually(lambda: not keeper._pending)


async def move(talk: Talk, running: Running) -> None:
    """Lose the connection, and come back to another server."""
    talk._connection._url = running.url
    await lose(talk)


@pytest.mark.parametrize("options", [{}, {"history": []}], ids=["named", "own"])
@pytest.mark.parametrize("known", [0, 1, 2])
@pytest.mark.parametrize("cut_after", [None, 0, 1])
async def test_what_a_killed_server_had_not_written_is_said_again(
    options: dict[str, Any], known: int, cut_after: int | None
) -> None:
    store = StandIn()
    async with serving(store=store) as one, serving(store=store) as other, talking(one, **options) as talk:
        for number in range(3):
            if number == known:
                die(one)
            persona = f"You are Mia {number}."
            assert await talk.say(f"turn {number}", persona=persona).reply() == SAID
            await written(one) if number < known else None
        expected = ["[system] You are Mia 2."]
        for number in range(3):
            expected += [f"[user] turn {number} [assistant] {SAID}"]
        if cut_after is not None:
            one.engine.reply, one.engine.pause = LONG, 0.01 if cut_after else 100.0
            turn = talk.say("turn 3")
            await (first_token(turn) if cut_after else until_acknowledged(turn))
            await move(talk, other)
            said = [event async for event in turn]
            assert isinstance(said[-1], Interrupted)
            expected += [f"[user] turn 3 [assistant] {said[-1].said.strip()}"] if said[-1].said else []
        else:
            await move(talk, other)
        assert await talk.say("the last one").reply() == SAID
        assert prompt(other) == " ".join((*expected, "[user] the last one"))
        one.engine.pause = 0.0


async def until_acknowledged(turn: Turn) -> None:
    while not isinstance(await turn.__anext__(), Ack):
        pass


async def test_a_persona_that_a_killed_server_had_not_written_is_told_again(messages: list[dict[str, Any]]) -> None:
    store = StandIn()
    async with serving(store=store) as one, serving(store=store) as other, talking(one) as talk:
        assert await talk.say("one").reply() == SAID
        await written(one)
        die(one)
        await talk.set_persona("You are Zoe.")
        await move(talk, other)
        assert await talk.say("two").reply() == SAID
        assert prompt(other) == f"[system] You are Zoe. [user] one [assistant] {SAID} [user] two"
    assert all("history" not in message for message in messages if message["type"] == "start"), "it had all of that"


async def test_what_somebody_else_said_meanwhile_is_not_overwritten() -> None:
    store = StandIn()
    async with serving(store=store) as one, serving(store=store) as other, talking(one) as talk:
        assert await talk.say("one").reply() == SAID
        await written(one)
        async with connect(other.url, KEY, session="s1") as second:
            assert await second.say("two").reply() == SAID
        await written(other)
        await move(talk, other)
        assert await talk.say("three").reply() == SAID
        said = f"[user] one [assistant] {SAID} [user] two [assistant] {SAID} [user] three"
        assert prompt(other) == f"[system] You are Mia. {said}"


async def test_the_handshake_names_the_session_whatever_it_is_called() -> None:
    async with serving() as running:
        for name in ("caller-42", "Zoë", " ", "a" * 256, "ü" * 256, "a\nb"):
            async with connect(running.url, KEY, session=name) as talk:
                assert await talk.say("one").reply() == SAID


ACTS = st.sampled_from(["whole", "interrupt", "cut", "cut at once", "cancel", "leave"])


@settings(max_examples=12)
@given(st.lists(ACTS, min_size=2, max_size=6))
def test_whatever_happens_every_turn_has_one_end_and_nothing_is_said_twice(acts: list[str]) -> None:
    async def converse() -> None:
        engine = ScriptedEngine(reply=[f"w{number} " for number in range(40)], pause=0.001)
        turns: list[tuple[Turn, list[TurnEvent]]] = []
        async with serving(engine) as running:
            async with talking(running) as talk:
                for number, act in enumerate(acts):
                    turn = talk.say(f"utterance{number}")
                    events: list[TurnEvent] = []
                    turns.append((turn, events))
                    if act == "cut at once":
                        cut(talk)
                    async for event in turn:
                        events.append(event)
                        if isinstance(event, Token) and act != "whole":
                            if act == "cut":
                                cut(talk)
                            elif act == "cancel":
                                turn.cancel()
                            else:
                                break
                    if act != "interrupt":
                        events.extend([event async for event in turn])
                assert await talk.say("last").reply()
                for turn, events in turns:
                    events.extend([event async for event in turn])
                words = prompt(running).split()
                assert prompt(running).count("You are Mia.") == 1
                for number in range(len(acts)):
                    assert words.count(f"utterance{number}") <= 1
                said = [message.content for message in talk.history if message.role == "user"]
                assert [word for word in words if word.startswith("utterance")] == said[:-1]
            await all_gone(running)
        for turn, events in turns:
            ends = [event for event in events if isinstance(event, (Done, Interrupted))]
            assert ends == events[-1:]
            assert {event.request_id for event in events} == {turn.request_id}

    asyncio.run(converse())


@pytest.mark.parametrize("said", [None, "LOOK:", "LOOK: ", ""])
async def test_a_followup_that_is_sent_again_is_the_one_that_was_answered(said: str | None) -> None:
    """Also where the client has named no prefix: the server's own is in the history that it gets again."""
    async with serving() as one, serving() as other, talking(one, screen_checked_prefix=said) as talk:
        await talk.say("what is there").reply()
        await talk.followup("a cat").reply()
        await talk.say("and now").reply()
        before = prompt(one)
        await move(talk, other)
        assert await talk.say("more").reply() == SAID
        assert prompt(other) == f"{before} [assistant] {SAID} [user] more"


def test_the_prefix_that_no_message_tells_is_the_servers_own() -> None:
    assert server_settings().screen_checked_prefix == SCREEN_CHECKED_PREFIX
