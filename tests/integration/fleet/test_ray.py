"""The server on Ray Serve, on several nodes of this machine: what its listeners notice of all that Ray does to it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtime.text.prompt import Message
from tests.harness.fleet.ray_serve import MISSING, PYTHON, RayServe
from tests.harness.scripted import KEY, ScriptedRenderer
from tests.harness.stores.session_store import MISSING as NO_VALKEY
from tests.harness.stores.session_store import VALKEY, valkey
from yap_client import Backoff, Done, Final, Interrupted, Talk, Token, connect

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason=MISSING),
    pytest.mark.skipif(VALKEY is None, reason=NO_VALKEY),
    pytest.mark.timeout(500),
]
LISTENERS = 6
PERSONA = "You are kind."


class Listener:
    """One client that notes what happens to it.

    Attributes:
        cut: turns that were cut.
        wrong: turns whose prompt was not the persona and all that had been said.
    """

    def __init__(self, url: str, session: str) -> None:
        self.session = session
        self.said: list[str] = []
        self.cut = 0
        self.wrong: list[str] = []
        self.talk: Talk = connect(
            url,
            KEY,
            session=session,
            persona=PERSONA,
            backoff=Backoff(first=0.05, most=0.5, within=200),
            silence=60,
        )

    async def say(self, text: str) -> str:
        """Say something until it is answered whole, and return the word that the answer is made of."""
        for _ in range(30):
            history = [Message(one.role, one.content) for one in self.talk.history]
            reply, heard, whole = "", False, False
            async for event in self.talk.say(text):
                if isinstance(event, Interrupted):
                    self.cut += 1
                    if heard:  # what was heard of the reply is part of the conversation
                        self.said.append(text)
                elif isinstance(event, Token):
                    heard = True
                elif isinstance(event, Final):
                    reply = event.text
                elif isinstance(event, Done) and event.usage is not None:
                    whole = True
                    prompt = ScriptedRenderer().render(
                        persona=PERSONA, runtime_text="", history=history, utterance=text
                    )
                    if event.usage.prompt_tokens != len(prompt.token_ids):
                        self.wrong.append(f"{text}: {event.usage.prompt_tokens}, not {len(prompt.token_ids)} tokens")
            if whole:
                self.said.append(text)
                words = set(reply.lower().rstrip(".").split())
                assert len(words) == 1, reply
                return words.pop()
            await asyncio.sleep(0.05)
        raise AssertionError(f"{text!r} was never answered")


@asynccontextmanager
async def listening(url: str, number: int, name: str = "listener") -> AsyncIterator[list[Listener]]:
    """Open conversations, each with a session key of its own."""
    them = [Listener(url, f"{name}-{one}") for one in range(number)]
    opened: list[Listener] = []
    try:
        for one in them:
            await one.talk.__aenter__()
            opened.append(one)
        yield them
    finally:
        await asyncio.gather(*(one.talk.__aexit__(None, None, None) for one in opened))


async def all_say(them: list[Listener], text: str) -> dict[str, str]:
    """Have everybody say something at once, and return by session what each was answered."""
    replies = await asyncio.gather(*(one.say(text) for one in them))
    return {one.session: reply for one, reply in zip(them, replies, strict=True)}


@asynccontextmanager
async def speaking(them: list[Listener]) -> AsyncIterator[None]:
    """Have everybody speak all the time, and end with a turn that is whole."""
    over = asyncio.Event()

    async def speak(one: Listener) -> None:
        while not over.is_set():
            await one.say("go on")

    tasks = [asyncio.create_task(speak(one)) for one in them]
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(*tasks)


async def test_listeners_stay_with_their_replica_and_go_on_whatever_ray_does_to_it() -> None:
    arguments = {
        "replicas": 2,
        "most_replicas": 3,
        "turns": 3,
        "upscale_delay_s": 0,
        "look_back_s": 2,
    }
    with valkey() as store:
        variables = {
            "SCRIPT_REPLY": "server{pid}",
            "SCRIPT_REPLY_SECONDS": "0.5",
            "SESSION_STORE": f"valkey://127.0.0.1:{store.port}",
        }
        with RayServe(2, arguments=arguments, **variables) as ray:
            two = await asyncio.to_thread(ray.wait_running, 2)
            assert len({one.node for one in two}) == 2, "a replica on each node"

            # Who comes back comes to the replica that it had.
            came: list[dict[str, str]] = []
            for _ in range(2):
                async with listening(ray.url, LISTENERS, "visitor") as visitors:
                    came.append(await all_say(visitors, "it is me"))
            assert came[0] == came[1]
            assert set(came[0].values()) == {f"server{one.pid}" for one in two}, "both have listeners"

            async with listening(ray.url, LISTENERS) as them:
                # More turns than two replicas shall have: a third one comes, and nobody who speaks notices.
                async with listening(ray.url, LISTENERS, "guest") as guests, speaking([*them, *guests]):
                    three = await asyncio.to_thread(ray.wait_running, 3)
                assert not any(one.cut for one in [*them, *guests])

                # One is killed: its listeners are cut, come to the others, and go on.
                at = await all_say(them, "where are you")
                victim = next(one for one in three if f"server{one.pid}" in at.values())
                assert victim.pid is not None
                async with speaking(them):
                    await asyncio.sleep(0.3)
                    os.kill(victim.pid, signal.SIGKILL)
                    three = await asyncio.to_thread(ray.wait_running, 3, without=frozenset({victim.id}))
                cut = Counter(one.cut for one in them)
                assert cut[0] >= 1, "the others noticed nothing"
                assert set(cut) <= {0, 1}, "and those that were cut came back at once"
                before = [one.cut for one in them]

                # A rollout: each replica tells its listeners, and is taken away when their turns have ended.
                ray.application["runtime_env"]["env_vars"]["DRAIN_TIMEOUT_S"] = "20"
                ray.application["deployments"][0].update(max_surge_percent=100, rolling_update_percentage=1.0)
                async with speaking(them):
                    await asyncio.to_thread(ray.deploy)
                    old = frozenset(one.id for one in three)
                    new = await asyncio.to_thread(ray.wait_running, 3, without=old)
                    await asyncio.to_thread(ray.wait_gone, old)
                assert [one.cut for one in them] == before, "no turn was cut"
                assert set((await all_say(them, "where now")).values()) <= {f"server{one.pid}" for one in new}

                for one in them:
                    assert one.wrong == []
                    assert [said.content for said in one.talk.history if said.role == "user"] == one.said
