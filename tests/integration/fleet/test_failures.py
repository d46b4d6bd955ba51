"""What listeners notice when something dies: their client comes back by itself, and what was said is not lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.harness.fleet.haproxy import INSTALLED, HAProxy
from tests.harness.fleet.rows import reproduces
from tests.harness.fleet.servers import fleet
from tests.harness.scripted import KEY, serving
from tests.harness.server import Server, free_port
from tests.harness.stores.session_store import MISSING, VALKEY, valkey
from tests.harness.waiting import eventually
from yap_client import Backoff, Done, Final, Interrupted, Talk, connect

pytestmark = pytest.mark.skipif(not INSTALLED, reason="no haproxy here: install Debian's `haproxy`")
LISTENERS = 8
# Quick to come back, and patient: how long it takes is the benchmark's to say (`python -m tests.benchmarks scale`).
BACKOFF = Backoff(first=0.05, most=0.5, within=120)


async def said(talk: Talk, text: str) -> str:
    """Say something until it is answered whole, and return the answer: what was cut is said again, as people do."""
    for _ in range(20):
        reply, cut = "", False
        async for event in talk.say(text):
            if isinstance(event, Final):
                reply = event.text
            cut = cut or isinstance(event, Interrupted) or (isinstance(event, Done) and event.failed)
        if reply and not cut:
            return reply
    raise AssertionError(f"{text!r} was never answered")


@asynccontextmanager
async def listeners(url: str, number: int = LISTENERS) -> AsyncIterator[list[Talk]]:
    """Open conversations, each with a session key of its own."""
    async with AsyncExitStack() as stack:
        talks = [
            await stack.enter_async_context(
                connect(url, KEY, session=f"listener-{one}", persona="You are kind.", backoff=BACKOFF, silence=20)
            )
            for one in range(number)
        ]
        yield talks


@reproduces("a server dies (kill -9, engine dead)", "a server hangs")
async def test_a_server_dies_and_one_hangs() -> None:
    """Killed: its listeners come to the others. Stopped: nobody new comes to it, until it goes on."""
    variables = {"SCRIPT_REPLY_SECONDS": "0.2", "WS_MAX_MESSAGES_PER_WINDOW": "0"}
    async with AsyncExitStack() as stack:
        store = stack.enter_context(valkey()).url if VALKEY is not None else "memory"
        second = await stack.enter_async_context(serving(ws_max_messages_per_window=0, session_store=store))
        server = Server(Path(), api_key=KEY, module="tests.harness.scripted_process", SESSION_STORE=store, **variables)
        first = stack.enter_context(server)
        changes = [("timeout check 5s", "timeout check 1s")]
        router = stack.enter_context(HAProxy([first.port, second.port], changes=changes))
        await asyncio.to_thread(router.wait_up)
        assert first.process is not None
        async with listeners(router.url) as talks:
            await asyncio.gather(*(said(talk, "hello") for talk in talks))
            first.process.send_signal(signal.SIGSTOP)
            await asyncio.to_thread(router.wait_up, second.port)
            async with listeners(router.url, 4) as late:
                await asyncio.gather(*(said(talk, "is anybody there") for talk in late))
            first.process.send_signal(signal.SIGCONT)
            await asyncio.to_thread(router.wait_up)
            speaking = [asyncio.create_task(said(talk, "go on")) for talk in talks]
            first.process.send_signal(signal.SIGKILL)
            await asyncio.gather(*speaking)
            for talk in talks:
                assert [message.content for message in talk.history if message.role == "user"] == ["hello", "go on"]


@reproduces("the router dies")
async def test_the_router_dies_and_comes_back() -> None:
    async with fleet(2) as two, listeners(two.router.url) as talks:
        await asyncio.gather(*(said(talk, "hello") for talk in talks))
        again = HAProxy(two.router.servers)
        again.port, again.url, again.http = two.router.port, two.router.url, two.router.http
        await asyncio.to_thread(two.router.kill)
        speaking = [asyncio.create_task(said(talk, "go on")) for talk in talks]
        with again:
            await asyncio.to_thread(again.wait_up)
            replies = await asyncio.gather(*speaking)
            assert len(set(replies)) == 2, "both servers have listeners again"


@reproduces("a rollout")
async def test_a_rollout_replaces_every_server_and_every_listener_goes_on() -> None:
    """One after the other: the new one first, then the old one drains, as a Deployment with maxSurge 1 does."""
    async with fleet(2, spare=2) as four:
        router = four.router
        async with listeners(router.url) as talks:
            await asyncio.gather(*(said(talk, "first") for talk in talks))
            for old in (0, 1):
                router.servers.append(four.servers[old + 2].port)
                await asyncio.to_thread(router.reload)
                await asyncio.to_thread(router.wait_up, *(one.port for one in four.servers[old : old + 3]))
                speaking = [asyncio.create_task(said(talk, f"while {old} leaves")) for talk in talks]
                four.servers[old].service.drain()
                await asyncio.gather(*speaking)
                await asyncio.wait_for(asyncio.shield(four.servers[old].service.ended), 60)
            replies = await asyncio.gather(*(said(talk, "last") for talk in talks))
            assert set(replies) <= {"Server 2", "Server 3"}
            for talk in talks:
                users = [message.content for message in talk.history if message.role == "user"]
                assert users == ["first", "while 0 leaves", "while 1 leaves", "last"]


HOST = """
import asyncio, sys
async def answer(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    if b"upgrade" in head.lower():
        fields = b"Upgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        writer.write(b"HTTP/1.1 101 Switching Protocols\\r\\n" + fields + b"\\r\\n\\r\\n")
        await reader.read()
    else:
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "0.0.0.0", int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
"""


def networked() -> bool:
    """Whether network namespaces can be made here."""
    return (
        os.geteuid() == 0
        and shutil.which("ip") is not None
        and not subprocess.call(["unshare", "-n", "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    )


@reproduces("a host dies without a word")
async def test_a_host_that_is_silent_loses_its_sockets_though_it_says_no_end() -> None:
    """The host is a network namespace, whose cable is pulled."""
    if not networked():
        pytest.skip("network namespaces cannot be made here")
    name, port = f"yap{os.getpid() % 100000}", free_port()
    inner, outer, subnet = f"{name}a", f"{name}b", f"10.213.{os.getpid() % 250}"
    run = partial(subprocess.run, check=True)
    await asyncio.to_thread(run, ["ip", "netns", "add", name])
    try:
        for command in (
            ["ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name],
            ["ip", "addr", "add", f"{subnet}.1/24", "dev", outer],
            ["ip", "link", "set", outer, "up"],
            ["ip", "-n", name, "addr", "add", f"{subnet}.2/24", "dev", inner],
            ["ip", "-n", name, "link", "set", inner, "up"],
        ):
            await asyncio.to_thread(run, command)
        server = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", name, sys.executable, "-c", HOST, str(port)
        )
        try:
            with HAProxy([port], changes=[(f"127.0.0.1:{port}", f"{subnet}.2:{port}")]) as router:
                await asyncio.to_thread(router.wait_up)
                reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
                writer.write(
                    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                )
                assert b" 101 " in await reader.readline()
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.to_thread(run, ["ip", "-n", name, "link", "set", inner, "down"])
                assert await asyncio.wait_for(reader.read(), 60) == b""
                writer.close()
        finally:
            server.kill()
            await server.wait()
    finally:
        await asyncio.to_thread(run, ["ip", "netns", "del", name])


@pytest.mark.skipif(VALKEY is None, reason=MISSING)
async def test_what_was_said_is_known_to_the_next_server_by_the_store_alone() -> None:
    """These clients keep nothing: persona and history come to the next server out of Valkey, or not at all."""
    with valkey() as store:
        async with fleet(2, session_store=store.url, session_store_timeout_s=5) as two:
            async with two.client("k") as client:
                await client.turn(user_utterance="remember-me", persona_text="kind-persona")
                served = two.held().index(1)
            two.servers[served].service.drain()
            await asyncio.wait_for(asyncio.shield(two.servers[served].service.ended), 60)
            await two.up(1 - served)
            other = two.servers[1 - served].engine
            async with two.client("k") as client:
                await client.turn(user_utterance="and-now")
            (prompt,) = other.prompts
            assert prompt.count("kind-persona") == 1
            assert prompt.count("remember-me") == 1
            assert prompt.count("Server") == 1, "the reply that was heard"


@reproduces("the store dies")
@pytest.mark.skipif(VALKEY is None, reason=MISSING)
async def test_the_store_dies_and_nobody_notices() -> None:
    with valkey() as store:
        async with fleet(2, session_store=store.url, session_store_timeout_s=5) as two, two.client("k") as client:
            await client.turn(user_utterance="before")
            store.kill()
            for number in range(3):
                frames = await client.turn(user_utterance=f"without-{number}")
                assert not any(frame["type"] == "error" for frame in frames)
            await eventually(
                lambda: b"yap_session_store_up 0.0" in two.servers[two.held().index(1)].service.metrics.render()
            )
            store.start()
            await eventually(
                lambda: b"yap_session_store_up 1.0" in two.servers[two.held().index(1)].service.metrics.render()
            )
            served = two.held().index(1)
            two.servers[served].service.drain()
            await asyncio.wait_for(asyncio.shield(two.servers[served].service.ended), 60)
            await two.up(1 - served)
            async with two.client("k") as moved:
                await moved.turn(user_utterance="after")
            (prompt,) = two.servers[1 - served].engine.prompts
            assert [word for word in prompt if word in {"before", "without-0", "without-1", "without-2", "after"}] == [
                "before",
                "without-0",
                "without-1",
                "without-2",
                "after",
            ]
