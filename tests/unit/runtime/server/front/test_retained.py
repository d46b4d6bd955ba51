"""What the server keeps of a peer that sends anything and reads nothing: bounded, whatever the bytes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from runtime import defaults
from runtime.server.front.http import HttpFront
from runtime.server.front.websocket import WebSocketFront
from tests.attack import raw
from tests.harness.scripted import KEY, Running, serving

# What a socket gives at once.
READ_BYTES = 262_144
HIGH_WATER_BYTES = 65_536
# One read that waits, one message that grows, what waits to be written, and answers on top of the high-water mark.
MOST = READ_BYTES + defaults.MESSAGE_BYTES + 2 * HIGH_WATER_BYTES


class DeafWire(asyncio.Transport):
    """A transport whose peer reads nothing: what is written stays."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.unsent = 0
        self.paused = self.closing = self.lost = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Behind all that waits, which is for ever."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closing:
            before, self.unsent = self.unsent, self.unsent + len(data)
            if before <= HIGH_WATER_BYTES < self.unsent:
                self.protocol.pause_writing()

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closing = True
        if not self.unsent:
            self.abort()

    def abort(self) -> None:
        self.closing = True
        if not self.lost:
            self.lost = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


def retained(wire: DeafWire) -> int:
    """Bytes that are kept for a peer."""
    protocol = wire.protocol
    if isinstance(protocol, HttpFront):
        cycle = protocol.cycle
        return wire.unsent + len(protocol._held) + (len(cycle.body) if cycle is not None else 0)
    assert isinstance(protocol, WebSocketFront)
    messages = sum(len(str(message)) for message in protocol.queue._queue)  # type: ignore[attr-defined]
    pieces = sum(len(piece) + 64 for piece in protocol.frames)
    return wire.unsent + len(protocol._rest) + len(protocol.conn.reader.buffer) + messages + pieces


async def play(running: Running, data: bytes, step: int) -> None:
    loop = asyncio.get_running_loop()
    wire = DeafWire()
    wire.protocol = HttpFront(running.server.config, running.server.server_state, {}, loop)
    wire.protocol.connection_made(wire)
    try:
        for at in range(0, len(data), step):
            for _ in range(2000):
                if wire.closing or not wire.paused:
                    break
                await asyncio.sleep(0)
            if wire.closing or wire.paused:  # nothing more is read of it
                break
            wire.protocol.data_received(data[at : at + step])
            assert retained(wire) <= MOST, type(wire.protocol).__name__
            await asyncio.sleep(0)
            assert retained(wire) <= MOST, type(wire.protocol).__name__
        for _ in range(50):
            await asyncio.sleep(0)
        assert retained(wire) <= MOST
    finally:
        wire.abort()
        await asyncio.sleep(0)


GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
FRAMES = (
    raw.frame(raw.PING, b"p" * 125),
    raw.frame(raw.PING),
    raw.frame(raw.PONG, b"p" * 125),
    raw.frame(raw.CONTINUATION, final=False),
    raw.frame(raw.CONTINUATION, b"a", final=False),
    raw.frame(raw.TEXT, final=False),
    raw.frame(raw.TEXT, b'{"type":"ping","request_id":"abcdefghijklmnop"}'),
    raw.frame(raw.TEXT, b'{"type":"pong"}'),
    raw.frame(raw.TEXT, b'{"type":"nonsense"}'),
    raw.frame(raw.TEXT, b"[" * 3000),
    raw.frame(raw.BINARY, b"a" * 100_000),
    raw.frame(raw.TEXT, b"\xff"),
    raw.frame(raw.CLOSE, b"\x03\xe8"),
)
LINES = (
    GET,
    b"GET /healthz HTTP/1.1\r\n",
    b"X: y\r\n",
    b"\r\n",
    b"a",
    b"\x00",
    b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
)
BEGINNINGS = {
    "nothing": b"",
    "with a key": raw.handshake(KEY),
    "refused": raw.handshake("wrong"),
    "a request": GET,
    "a line": b"GET /ws HTTP/1.1\r\n",
    "a piece": raw.handshake(KEY) + raw.frame(raw.TEXT, final=False),
}
MUCH = 3_000_000


async def give(data: bytes, step: int) -> None:
    async with serving(ws_max_messages_per_window=0) as running:
        await play(running, data, step)


@pytest.mark.parametrize("beginning", BEGINNINGS)
async def test_what_is_kept_of_a_flood_is_bounded(beginning: str) -> None:
    pieces = LINES if beginning in ("nothing", "a request", "a line") else FRAMES
    async with serving(ws_max_messages_per_window=0) as running:
        for piece in pieces:
            await play(running, BEGINNINGS[beginning] + piece * (MUCH // len(piece)), 65_536)


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    begin=st.sampled_from(list(BEGINNINGS.values())),
    parts=st.lists(
        st.tuples(
            st.one_of(st.sampled_from((*FRAMES, *LINES)), st.binary(min_size=1, max_size=40)),
            st.sampled_from([1, 3, 1000, 30_000]),
        ),
        min_size=1,
        max_size=6,
    ),
    step=st.sampled_from([1000, 65_536, READ_BYTES]),
)
def test_what_is_kept_of_a_peer_is_bounded(begin: bytes, parts: list[tuple[bytes, int]], step: int) -> None:
    asyncio.run(give(begin + b"".join(part * min(times, MUCH // len(part)) for part, times in parts), step))
