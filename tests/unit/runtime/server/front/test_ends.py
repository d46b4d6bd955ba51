"""What a connection leaves behind when it ends: nothing that only the garbage collector could find."""

from __future__ import annotations

import asyncio
import collections
import gc
import json
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.attack import raw
from tests.harness.scripted import KEY, serving
from tests.harness.waiting import all_gone

CONNECTIONS = 20
# What asyncio's own transport leaves; uvloop's is none of Python's objects. A cycle of ours has an object of ours.
OF_THE_TRANSPORT = frozenset({"_SelectorSocketTransport", "TransportSocket", "socket", "method", "dict", "tuple"})


def closes(port: int, key: str) -> None:
    with raw.websocket(port, key) as connection:
        connection.sendall(raw.frame(raw.CLOSE, b"\x03\xe8"))
        raw.to_the_end(connection)


def leaves(port: int, sent: bytes, *, answered: bool = True) -> None:
    with raw.connect(port) as connection:
        connection.sendall(sent)
        if answered:
            connection.recv(65_536)
        else:  # the server ends it too: who only closes may be gone before a busy one has taken the connection
            connection.shutdown(socket.SHUT_WR)
            raw.to_the_end(connection)


ENDS: dict[str, Callable[[int], None]] = {
    "a slot": lambda port: closes(port, KEY),
    "a wrong key": lambda port: closes(port, "wrong"),
    "gone at once": lambda port: raw.websocket(port, KEY).close(),
    "a page": lambda port: leaves(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"),
    "half a head": lambda port: leaves(port, b"GET /heal", answered=False),
    "no head at all": lambda port: leaves(port, b"\x00\x01\r\n\r\n"),
    "a bad handshake": lambda port: leaves(port, b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n"),
    "bad frames": lambda port: leaves_with_frames(port),
    "a reply": lambda port: leaves(port, asking(stream=False)),
    "a stream": lambda port: leaves(port, asking(stream=True)),
    "a refused request": lambda port: leaves(port, asking(model="gpt")),
}


def asking(**fields: object) -> bytes:
    body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "hello"}], **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def leaves_with_frames(port: int) -> None:
    with raw.websocket(port, KEY) as connection:
        connection.sendall(b"\xff" * 64)
        raw.to_the_end(connection)


@pytest.fixture
def no_collections() -> Iterator[None]:
    """No automatic ones."""
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.parametrize("end", ENDS)
async def test_a_connection_that_ends_leaves_no_cycles(end: str, no_collections: None) -> None:
    def several() -> None:
        for _ in range(CONNECTIONS):
            ENDS[end](running.port)

    async with serving(http_max_requests_per_window=0) as running:
        await asyncio.to_thread(several)  # what is made once
        await all_gone(running)
        gc.collect()
        await asyncio.to_thread(several)
        await all_gone(running)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = collections.Counter(type(one).__name__ for one in gc.garbage)
    ours = {name: count for name, count in left.items() if name not in OF_THE_TRANSPORT}
    assert sum(ours.values()) < CONNECTIONS, ours
