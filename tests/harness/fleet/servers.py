"""Scripted servers in this process, each of which says its own name, and the router before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from websockets.asyncio.client import connect

from tests.harness.fleet.haproxy import HAProxy
from tests.harness.scripted import KEY, Client, Running, ScriptedEngine, serving

SLOTS = 40


@dataclass
class Fleet:
    """Servers, each of which says its own name, and the router before them."""

    router: HAProxy
    servers: list[Running]

    @asynccontextmanager
    async def client(self, session: str | None = None, query: str = "", **headers: str) -> AsyncIterator[Client]:
        """Connect through the router."""
        named = {"X-Session-Id": session} if session is not None else {}
        async with connect(
            self.router.url + query, additional_headers={"X-API-Key": KEY, **named, **headers}, compression=None
        ) as socket:
            yield Client(socket)

    async def asked(self, session: str | None = None, query: str = "", **headers: str) -> str:
        """Say something on a new connection, and return the name of the server that answers."""
        async with self.client(session, query, **headers) as client:
            return await name_of(client)

    async def up(self, *servers: int) -> None:
        """Wait until the router takes these for ready, and no others."""
        await asyncio.to_thread(self.router.wait_up, *(self.servers[number].port for number in servers))

    def held(self) -> list[int]:
        """The connections of each server."""
        return [running.service.admission.held for running in self.servers]


async def name_of(client: Client) -> str:
    """Ask a server for its name."""
    frames = await client.turn(user_utterance="who", sampling={"sanitize_output": False})
    return next(frame["normalized_text"] for frame in frames if frame["type"] == "final")


@asynccontextmanager
async def fleet(number: int = 3, spare: int = 0, **values: object) -> AsyncIterator[Fleet]:
    """Run servers and the router; `spare` ones run without being known to it."""
    values = {"max_concurrent_connections": SLOTS, "ws_max_messages_per_window": 0, **values}
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(serving(ScriptedEngine(reply=[f"server {index}"]), **values))
            for index in range(number + spare)
        ]
        router = HAProxy([running.port for running in servers[:number]])
        router.__enter__()
        stack.callback(router.__exit__, None, None, None)
        await asyncio.to_thread(router.wait_up)
        yield Fleet(router, servers)
