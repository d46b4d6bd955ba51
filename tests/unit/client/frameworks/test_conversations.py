"""Conversations with one server: which one answers, and how many connections there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest

from tests.harness.scripted import KEY, Running, ScriptedClassifier, ScriptedEngine, serving
from tests.harness.waiting import all_gone, eventually
from yap_client import AuthenticationError, Backoff, ClosedError, Message, Token, connect
from yap_client.frameworks.context import Context, Item, ToolResult
from yap_client.frameworks.conversations import Conversations


@asynccontextmanager
async def conversing(most: int = 3, key: str = KEY, pause: float = 0.0) -> AsyncIterator[tuple[Running, Conversations]]:
    engine = ScriptedEngine(pause=pause, gate=asyncio.Event())
    engine.gate.set()
    async with serving(engine, ScriptedClassifier()) as running:
        conversations = Conversations(
            lambda: connect(running.url, key, backoff=Backoff(first=0.01)), prefix="Seen:", most=most
        )
        yield running, conversations
        await conversations.close()
        await all_gone(running)


async def ask(conversations: Conversations, *said: Item | str, persona: str = "P") -> str:
    """Answer a conversation, in which a text is the user's."""
    items = tuple(Message("user", each) if isinstance(each, str) else each for each in said)
    context = Context(persona, "", items)
    async with conversations.lease(context, {}) as conversation:
        return "".join([event.text async for event in conversation.reply(context, {}) if isinstance(event, Token)])


async def asked_at_once(running: Running, conversations: Conversations, words: list[str], together: int) -> list[str]:
    """Ask several things, of which so many are to be in the engine at once."""
    gate = running.engine.gate
    assert gate is not None
    gate.clear()
    asking = asyncio.gather(*(ask(conversations, word) for word in words))
    await eventually(lambda: len(running.engine.held) == together)
    gate.set()
    return await asking


def prompts(running: Running) -> list[str]:
    return [" ".join(words) for words in running.engine.prompts]


async def test_one_after_the_other_goes_over_one_connection() -> None:
    async with conversing() as (running, conversations):
        said: Sequence[Item] = ()
        for word in ("one", "two", "three"):
            said = (*said, Message("user", word))
            said = (*said, Message("assistant", await ask(conversations, *said)))
        assert len(running.service.connections) == 1
        reply = "[assistant] Sure thing, here it is."
        assert prompts(running)[-1] == f"[system] P [user] one {reply} [user] two {reply} [user] three"


async def test_at_once_there_are_no_more_than_that() -> None:
    async with conversing(most=3) as (running, conversations):
        words = [f"q{n}" for n in range(9)]
        assert len(await asked_at_once(running, conversations, words, together=3)) == 9
        assert sorted(prompts(running)) == sorted(f"[system] P [user] {word}" for word in words)
        assert running.engine.most_held == 3
        assert len(running.service.connections) == 3


async def test_the_one_that_has_the_conversation_answers_it() -> None:
    async with conversing() as (running, conversations):
        replies = await asked_at_once(running, conversations, ["one", "two"], together=2)
        for word, reply in zip(("one", "two"), replies, strict=True):
            await ask(conversations, word, Message("assistant", reply), "and now")
        sessions = running.service.sessions
        assert sessions is not None
        assert len(sessions) == 2


async def test_a_lease_that_is_given_up_comes_back_and_the_engine_holds_nothing() -> None:
    async with conversing(most=1, pause=0.01) as (running, conversations):
        for _ in range(5):
            asking = asyncio.ensure_future(ask(conversations, "one"))
            await eventually(lambda: running.engine.held)
            asking.cancel()
            await asyncio.wait({asking})
            await eventually(lambda: not running.engine.held)
        assert await ask(conversations, "two") == "Sure thing, here it is."
        assert prompts(running)[-1] == "[system] P [user] two"
        assert running.engine.aborts == 5
        assert not running.engine.held


async def test_who_leaves_a_reply_early_ends_its_turn() -> None:
    async with conversing(pause=0.01) as (running, conversations):
        context = Context("P", "", (Message("user", "one"),))
        async with (
            conversations.lease(context, {}) as conversation,
            aclosing(conversation.reply(context, {})) as events,
        ):
            await anext(events)
        await eventually(lambda: running.engine.aborts == 1 and not running.engine.held)


async def test_a_result_goes_back_as_a_followup_or_with_what_was_changed() -> None:
    async with conversing() as (running, conversations):
        look, words = Message("user", "look"), Message("assistant", await ask(conversations, "look"))
        result = ToolResult("c1", "a cat")
        reply = await ask(conversations, look, words, result)
        assert prompts(running)[-1].endswith("here it is. [user] Seen: a cat")
        other = ToolResult("c2", "a look around")  # a decision about these words would be yes
        asked = len(running.classifier.asked) if running.classifier else 0
        await ask(conversations, look, words, result, Message("assistant", reply), other, persona="Q")
        assert prompts(running)[-1].startswith("[system] Q ")
        assert prompts(running)[-1].endswith("Seen: a look around")
        assert running.classifier is not None
        assert len(running.classifier.asked) == asked + 1  # it had to go as a start; nobody is told of the decision


async def test_a_connection_that_is_opened_ahead_is_used() -> None:
    async with conversing() as (running, conversations):
        opening = asyncio.ensure_future(conversations.open())
        await asyncio.sleep(0)
        await ask(conversations, "one")
        await opening
        assert len(running.service.connections) == 1


async def test_what_cannot_come_back_is_not_lent_again() -> None:
    async with conversing(key="wrong") as (_, conversations):
        for _attempt in range(2):
            with pytest.raises(AuthenticationError):
                await ask(conversations, "one")
    with pytest.raises(ClosedError):
        await ask(conversations, "one")


@pytest.mark.parametrize("replying", [False, True])
async def test_a_client_that_is_not_to_come_back_is_replaced_once_it_is_lost(replying: bool) -> None:
    async with serving(ScriptedEngine(pause=0.01)) as running:
        conversations = Conversations(lambda: connect(running.url, KEY, backoff=None))
        assert await ask(conversations, "one") == "Sure thing, here it is."
        (connection,) = running.service.connections
        asking = asyncio.ensure_future(ask(conversations, "two")) if replying else None
        if asking is not None:
            await eventually(lambda: running.engine.held)
        connection.close(1001, "cut")
        if asking is not None:
            await asyncio.wait({asking})
        await eventually(lambda: not running.service.connections)
        await eventually(lambda: all(each.talk.gone is not None for each in conversations._idle))
        for _ in range(2):
            assert await ask(conversations, "three") == "Sure thing, here it is."
        assert len(running.service.connections) == 1
        await conversations.close()
        await all_gone(running)
