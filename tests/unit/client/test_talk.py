"""The client against a server whose engine does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.harness.scripted import KEY, REPLY, Running, ScriptedClassifier, ScriptedEngine, serving
from tests.harness.waiting import all_gone, eventually
from yap_client import (
    Ack,
    AuthenticationError,
    Backoff,
    CapacityError,
    ClosedError,
    Done,
    Final,
    Interrupted,
    Message,
    RateLimitError,
    RefusedError,
    ServerGoneError,
    Talk,
    Token,
    ToolCall,
    TurnEvent,
    connect,
)

LONG = ["word "] * 500
SAID = "".join(REPLY)
SOON = Backoff(first=0.01, most=0.05, within=20)


@asynccontextmanager
async def talking(engine: ScriptedEngine | None = None, **options: Any) -> AsyncIterator[tuple[Running, Talk]]:
    """A server and a client of it, with a session and a persona."""
    async with serving(engine, ScriptedClassifier(), **options) as running:
        async with connect(running.url, KEY, session="s1", persona="You are Mia.", backoff=SOON) as talk:
            yield running, talk
        await all_gone(running)


def prompts(running: Running) -> list[str]:
    return [" ".join(words) for words in running.engine.prompts]


async def until_token(events: AsyncIterator[TurnEvent]) -> None:
    async for event in events:
        if isinstance(event, Token):
            return


async def test_a_turn_is_the_servers_frames_as_typed_events() -> None:
    async with talking() as (_, talk):
        turn = talk.say("look at this")
        events = [event async for event in turn]
        kinds = [type(event) for event in events]
        assert kinds == [Ack, ToolCall, *[Token] * len(REPLY), Final, Done]
        assert turn.text == SAID
        assert isinstance(events[1], ToolCall)
        assert events[1].screenshot
        assert {event.request_id for event in events} == {turn.request_id}
        assert turn.usage is not None
        assert turn.usage.cached_tokens == 3
        with pytest.raises(AttributeError):
            events[0].ok = False  # type: ignore[misc,union-attr]


async def test_the_persona_goes_once() -> None:
    async with talking() as (running, talk):
        assert await talk.say("one").reply() == SAID
        assert await talk.followup("a cat").reply() == SAID
        assert await talk.say("two").reply() == SAID
        assert prompts(running)[-1].startswith("[system] You are Mia. [user] one")
        assert prompts(running)[-1].count("Mia") == 1


async def test_who_says_the_next_thing_interrupts() -> None:
    async with talking(ScriptedEngine(reply=LONG, pause=0.005)) as (running, talk):
        old = talk.say("one")
        await until_token(aiter(old))
        new = talk.say("two", heard="Wo")
        running.engine.reply = REPLY
        assert [event async for event in old] == [Done(request_id=old.request_id, cancelled=True)]
        assert await new.reply() == SAID
        assert prompts(running)[-1].endswith("[user] one [assistant] Wo [user] two")


async def test_who_leaves_the_loop_ends_the_turn_on_the_server() -> None:
    async with talking(ScriptedEngine(reply=LONG, pause=0.005)) as (running, talk):
        turn = talk.say("one")
        async for event in turn:
            if isinstance(event, Token):
                break
        await eventually(lambda: not running.engine.held)
        assert [event async for event in turn] == [Done(request_id=turn.request_id, cancelled=True)]

        task = asyncio.create_task(talk.say("two").reply())
        await eventually(lambda: running.engine.held)
        task.cancel()
        await eventually(lambda: not running.engine.held)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_after_a_lost_socket_the_next_turn_goes_on_and_says_nothing_twice() -> None:
    async with talking(ScriptedEngine(reply=LONG, pause=0.005)) as (running, talk):
        turn = talk.say("one")
        events: list[TurnEvent] = []
        async for event in turn:
            events.append(event)
            if isinstance(event, Token):
                assert talk._connection.socket is not None
                talk._connection.socket.transport.abort()
        ends = [event for event in events if isinstance(event, (Done, Interrupted))]
        assert ends == [events[-1]]
        assert isinstance(ends[0], Interrupted)
        running.engine.reply = REPLY
        assert await talk.say("two").reply() == SAID
        said = " ".join(ends[0].said.split())
        assert prompts(running)[-1] == f"[system] You are Mia. [user] one [assistant] {said} [user] two"


async def test_a_wrong_key_is_refused_and_not_tried_again() -> None:
    async with serving() as running:
        with pytest.raises(AuthenticationError, match="authentication_failed"):
            async with connect(running.url, "wrong"):
                pass


async def test_a_full_server_is_tried_again_within_a_bound() -> None:
    async with serving(max_concurrent_connections=1, ws_handshake_acquire_timeout_s=0) as running:
        async with running.client():
            with pytest.raises(CapacityError, match="server_at_capacity"):
                async with connect(running.url, KEY, backoff=Backoff(first=0.01, within=0.1)):
                    pass
            waiting = asyncio.create_task(connect(running.url, KEY, backoff=SOON).__aenter__())
            await asyncio.sleep(0.05)
            assert not waiting.done()
        talk = await waiting
        assert await talk.say("one").reply() == SAID
        await talk.close()


async def test_without_a_server_it_says_so_at_once() -> None:
    async with serving() as running:
        url = running.url
    with pytest.raises(ServerGoneError, match="cannot reach"):
        async with connect(f"{url}?api_key=secret"):
            pass


async def test_what_the_server_refuses_is_raised_with_its_reason() -> None:
    async with talking() as (_, talk):
        with pytest.raises(RefusedError, match="temperature_out_of_range") as refused:
            await talk.say("one", sampling={"temperature": 7}).reply()
        assert (refused.value.field, refused.value.found) == ("temperature", "7")
        assert await talk.say("one").reply() == SAID, "what was refused is not sent again"


async def test_a_rate_limit_says_how_long_to_wait() -> None:
    async with talking(chat_prompt_update_max_per_window=1) as (_, talk):
        assert await talk.set_persona("You are Ann.") is None, "nothing was said: the first turn carries it"
        await talk.say("one").reply()
        assert (await talk.set_persona("You are Bob.")).code == 200  # type: ignore[union-attr]
        with pytest.raises(RateLimitError) as limited:
            await talk.set_persona("You are Cid.")
        assert limited.value.retry_in > 0


async def test_the_next_turn_is_warmed_as_it_will_be_rendered() -> None:
    async with talking() as (running, talk):
        assert (await talk.warm()).segment == "persona_static"
        await talk.say("one").reply()
        assert (await talk.warm()).segment == "history"
        await talk.say("two").reply()
        assert " ".join(running.engine.warmed[-1]) == prompts(running)[-1].removesuffix(" [user] two")


async def test_what_is_prepared_is_what_the_same_words_ask_and_nothing_is_kept_of_it() -> None:
    async with talking() as (running, talk):
        words: list[dict[str, Any]] = [
            {},
            {"runtime_text": "Be kind."},
            {"sampling": {"temperature": 0.5}, "gender": "woman"},
            {"heard": "Sure", "persona": "You are Ann."},
            {"history": [Message("user", "hm")], "check_screen_prefix": "LOOK:"},
        ]
        for number, more in enumerate(words):
            assert talk.prepare(f"never said {number}", persona="You are Eve.", sampling={"temperature": 0.1})
            assert talk.prepare(f"words {number}", **more)
            await eventually(lambda: (prompts(running) or [""])[-1].endswith(f"words {number}"))  # noqa: B023
            said = len(running.engine.prompts)
            turn = talk.say(f"words {number}", **more)
            assert await turn.reply() == SAID
            assert turn.usage is not None
            assert turn.usage.prepared
            assert len(running.engine.prompts) == said
        assert not any("never" in message.content for message in talk.history)
        await talk.say("another").reply()
        assert "Eve." not in running.engine.prompts[-1]


async def test_preparing_never_fails_and_never_ends_a_turn() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with talking(engine, ws_max_prepares_per_window=1) as (running, talk):
        turn = talk.say("one")
        await eventually(lambda: running.engine.held)
        assert talk.prepare("two")
        assert talk.prepare("three")  # one too many a minute: nobody is told
        engine.gate.set()
        assert await turn.reply() == SAID
        assert await talk.say("two").reply() == SAID
    assert not talk.prepare("after the end")


async def test_history_is_what_the_session_has() -> None:
    async with talking() as (_, talk):
        await talk.say("one").reply()
        answer = await talk.heard("Sure thing")
        assert answer is not None
        assert answer.chars == 10
        assert talk.history == (Message("user", "one"), Message("assistant", "Sure thing"))


async def test_a_closed_client_says_nothing() -> None:
    async with talking() as (_, talk):
        assert await talk.ping() >= 0
    with pytest.raises(ClosedError):
        await talk.say("one").reply()
