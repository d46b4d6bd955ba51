"""The server on Ray Serve, on several nodes of this machine: what its listeners notice of all that Ray does to it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect as open_socket

from runtime.text.prompt import Message
from tests.harness.fleet.ray_serve import MISSING, PYTHON, RayServe
from tests.harness.fleet.servers import name_of
from tests.harness.scripted import KEY, Client, ScriptedRenderer
from tests.harness.stores.session_store import MISSING as NO_VALKEY
from tests.harness.stores.session_store import VALKEY, valkey
from tests.harness.waiting import eventually
from yap_client import Backoff, Done, Final, Interrupted, Talk, Token, connect

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason=MISSING),
    pytest.mark.skipif(VALKEY is None, reason=NO_VALKEY),
    pytest.mark.timeout(500),
]
PERSONA = "You are kind."


class Listener:
    """One client that notes what happens to it.

    Attributes:
        cut: why replies were cut that had begun.
        wrong: turns whose prompt was not the persona and all that had been said.
        hearing: whether it hears a reply that has not ended.
    """

    def __init__(self, url: str, session: str) -> None:
        self.session = session
        self.said: list[str] = []
        self.cut: list[str] = []
        self.wrong: list[str] = []
        self.hearing = False
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
            reply, whole = "", False
            async for event in self.talk.say(text):
                self.hearing = isinstance(event, Token)
                if isinstance(event, Interrupted):
                    if event.said:  # it is part of the conversation then
                        self.said.append(text)
                    if event.begun:
                        self.cut.append(f"{text}: {event.reason}")
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
                return word_of(reply)
            await asyncio.sleep(0.05)
        raise AssertionError(f"{text!r} was never answered")


@asynccontextmanager
async def listening(url: str, sessions: Iterable[str]) -> AsyncIterator[list[Listener]]:
    """Open conversations of these names."""
    them = [Listener(url, session) for session in sessions]
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


async def spread(url: str, replicas: int, stack: AsyncExitStack, each: int = 3) -> dict[Listener, str]:
    """Open conversations until each replica has some, and return where they are: which key goes where is chance."""
    at: dict[Listener, str] = {}
    for batch in itertools.count():
        sessions = [f"listener-{batch}-{number}" for number in range(8)]
        them = await stack.enter_async_context(listening(url, sessions))
        replies = await all_say(them, "where am I")
        at |= {one: replies[one.session] for one in them}
        of_each = Counter(at.values())
        if len(of_each) == replicas and min(of_each.values()) >= each:
            break
    return at


async def kill_amid_a_reply(pid: int, them: list[Listener]) -> None:
    """Kill a replica while one of these hears a reply of it: it is stopped first, until what it had sent has come."""
    while True:
        await eventually(lambda: any(one.hearing for one in them))
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.2)
        if any(one.hearing for one in them):
            os.kill(pid, signal.SIGKILL)
            return
        os.kill(pid, signal.SIGCONT)


async def answered(url: str, key: str) -> str:
    """Come with a session key, and return the word that is answered."""
    headers = {"X-API-Key": KEY, "X-Session-Id": key}
    async with open_socket(url, additional_headers=headers, open_timeout=60) as socket:
        return word_of(await name_of(Client(socket)))


def word_of(reply: str) -> str:
    """The word that a reply is made of."""
    words = set(reply.lower().rstrip(".").split())
    assert len(words) == 1, reply
    return words.pop()


async def test_listeners_stay_with_their_replica_and_go_on_whatever_ray_does_to_it() -> None:
    arguments = {"replicas": 1, "most_replicas": 2, "turns": 4, "upscale_delay_s": 0, "look_back_s": 2}
    with valkey() as store:
        variables = {
            "SCRIPT_REPLY": "server{pid}",
            "SCRIPT_REPLY_SECONDS": "soon",
            "SESSION_STORE": f"valkey://127.0.0.1:{store.port}",
        }
        with RayServe(2, arguments=arguments, tries=1, **variables) as ray:
            # A replica that cannot start says why, and where there is more of it.
            said = (await asyncio.to_thread(ray.wait_failed)).splitlines()
            (why,) = [line for line in said if "exit status" in line]
            assert "exit status 70: loading failed: ValueError: could not convert string to float: 'soon'" in why
            kept = [Path(line.removeprefix("more in ")) for line in said if line.startswith("more in ")]
            assert any("replica_refused" in path.read_text() for path in kept)
            ray.application["runtime_env"]["env_vars"]["SCRIPT_REPLY_SECONDS"] = "0.3"
            ray.deploy()
            await asyncio.to_thread(ray.wait_running, 1)
            # More turns than one replica shall have: another one comes, and nobody who speaks notices.
            async with listening(ray.url, [f"guest-{number}" for number in range(6)]) as guests, speaking(guests):
                two = await asyncio.to_thread(ray.wait_running, 2)
            assert not any(one.cut for one in guests)
            assert len({one.node for one in two}) == 2, "a replica on each node"

            # Who comes back comes to the replica that it had, once the proxy knows of both.
            seen: set[str] = set()
            for number in itertools.count():
                if len(seen) == 2:
                    break
                seen.add(await answered(ray.url, f"anybody-{number}"))
            async with AsyncExitStack() as stack:
                at = await spread(ray.url, 2, stack)
                them = list(at)
                assert set(at.values()) == {f"server{one.pid}" for one in two}
                for one in them:
                    assert await answered(ray.url, one.session) == at[one]

                # One is killed: its listeners are cut, come to the other, and go on; those of the other notice nothing.
                victim = two[0]
                assert victim.pid is not None
                killed = f"server{victim.pid}"
                async with speaking(them):
                    await kill_amid_a_reply(victim.pid, [one for one in them if at[one] == killed])
                    two = await asyncio.to_thread(ray.wait_running, 2, without=frozenset({victim.id}))
                assert any(one.cut for one in them if at[one] == killed)
                assert not any(one.cut for one in them if at[one] != killed)
                before = [list(one.cut) for one in them]

                # A rollout: each replica tells its listeners, and is taken away when their turns have ended.
                ray.application["runtime_env"]["env_vars"]["DRAIN_TIMEOUT_S"] = "20"
                ray.application["deployments"][0].update(max_surge_percent=100, rolling_update_percentage=1.0)
                async with speaking(them):
                    await asyncio.to_thread(ray.deploy)
                    old = frozenset(one.id for one in two)
                    new = await asyncio.to_thread(ray.wait_running, 2, without=old)
                    await asyncio.to_thread(ray.wait_gone, old)
                assert [one.cut for one in them] == before, "no reply was cut"
                assert set((await all_say(them, "where now")).values()) <= {f"server{one.pid}" for one in new}

                for one in them:
                    assert one.wrong == []
                    assert [said.content for said in one.talk.history if said.role == "user"] == one.said
