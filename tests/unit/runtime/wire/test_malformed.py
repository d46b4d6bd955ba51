"""Frames that no WebSocket client should send: the server closes as RFC 6455 says, never hangs, and serves the next.

Made by hand, because the Autobahn suite on PyPI is for Python 2.
"""

from __future__ import annotations

import asyncio
import base64
import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.frames import CloseCode, Opcode

from tests.harness.scripted import KEY, Running, serving

TIMEOUT_S = 30.0


async def opened(running: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A socket on which the handshake was done, and nothing else."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nX-API-Key: {KEY}\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
    assert head.startswith(b"HTTP/1.1 101"), head
    return reader, writer


async def closed_with(reader: asyncio.StreamReader) -> int | None:
    """The close code that the server sends; none when it just hangs up. Fails when it does neither in time."""

    async def read() -> int | None:
        while header := await reader.read(2):
            length = header[1] & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
            payload = await reader.readexactly(length)
            if header[0] & 0x0F == Opcode.CLOSE:
                return struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else None
        return None

    return await asyncio.wait_for(read(), TIMEOUT_S)


def frame(opcode: int, data: bytes, *, fin: bool = True, reserved: int = 0, mask: bool = True) -> bytes:
    """A frame as asked for, allowed or not (`websockets` refuses to write what is not)."""
    head = struct.pack("!BB", fin << 7 | reserved << 4 | opcode, mask << 7 | len(data))
    # A mask of zeros leaves the payload as it is.
    return head + (bytes(4) if mask else b"") + data


MALFORMED = {
    "a reserved bit": (frame(Opcode.TEXT, b"{}", reserved=4), CloseCode.PROTOCOL_ERROR),
    "an unknown opcode": (frame(3, b""), CloseCode.PROTOCOL_ERROR),
    "an unmasked frame": (frame(Opcode.TEXT, b"{}", mask=False), CloseCode.PROTOCOL_ERROR),
    "a continuation of nothing": (frame(Opcode.CONT, b"more"), CloseCode.PROTOCOL_ERROR),
    "a text inside a fragmented text": (
        frame(Opcode.TEXT, b"{", fin=False) + frame(Opcode.TEXT, b"}"),
        CloseCode.PROTOCOL_ERROR,
    ),
    "a fragmented ping": (frame(Opcode.PING, b"", fin=False), CloseCode.PROTOCOL_ERROR),
    "a ping of more than 125 bytes": (
        bytes([0x89, 0xFE]) + struct.pack("!H", 126) + b"abcd" + b"x" * 126,
        CloseCode.PROTOCOL_ERROR,
    ),
    "a close of one byte": (frame(Opcode.CLOSE, b"\x03"), CloseCode.PROTOCOL_ERROR),
    "a close with a code that must not be sent": (
        frame(Opcode.CLOSE, struct.pack("!H", 1005)),
        CloseCode.PROTOCOL_ERROR,
    ),
    "text that is not UTF-8": (frame(Opcode.TEXT, b'{"type":"\xff"}'), CloseCode.INVALID_DATA),
    "a message that is announced too big": (
        bytes([0x81, 0xFF]) + struct.pack("!Q", 1 << 40) + b"abcd",
        CloseCode.MESSAGE_TOO_BIG,
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_frame_closes_its_socket_alone(name: str) -> None:
    data, code = MALFORMED[name]
    async with serving() as running, running.client() as bystander:
        reader, writer = await opened(running)
        writer.write(data)
        assert await closed_with(reader) == code
        writer.close()
        assert (await bystander.turn(user_utterance="hello"))[-1]["type"] == "done"


async def test_a_frame_that_never_ends_does_not_hold_the_server() -> None:
    async with serving(ws_idle_timeout_s=1) as running:
        reader, writer = await opened(running)
        writer.write(frame(Opcode.TEXT, b"x" * 100)[:20])
        async with running.client() as other:
            assert (await other.turn(user_utterance="hello"))[-1]["type"] == "done"
        assert await closed_with(reader) == 4000
        writer.close()


async def test_slots_come_back_after_every_malformed_frame() -> None:
    async with serving(max_concurrent_connections=2) as running:
        for data, _ in MALFORMED.values():
            reader, writer = await opened(running)
            writer.write(data)
            await closed_with(reader)
            writer.close()
        for _ in range(100):
            if running.service.admission.held == 0:
                break
            await asyncio.sleep(0.02)
        assert running.service.admission.held == 0


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=4))
def test_any_bytes_after_the_handshake_leave_the_server_serving(pieces: list[bytes]) -> None:
    async def main() -> None:
        async with serving() as running:
            reader, writer = await opened(running)
            for piece in pieces:
                writer.write(piece)
            writer.write_eof()  # what the server still waits for does not come
            await closed_with(reader)
            writer.close()
            async with running.client() as other:
                assert (await other.turn(user_utterance="hello"))[-1]["type"] == "done"

    asyncio.run(main())
