"""Bytes on a socket, for clients that do not behave."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


def frame(opcode: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    first, size = (0x80 if final else 0) | opcode, len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65_536:
        head = bytes((first, 0x80 | 126)) + struct.pack("!H", size)
    else:
        head = bytes((first, 0x80 | 127)) + struct.pack("!Q", size)
    return head + bytes(4) + payload


def handshake(key: str | None = None, *, path: str = "/ws", extra: str = "") -> bytes:
    """A WebSocket's request."""
    authentication = f"X-API-Key: {key}\r\n" if key is not None else ""
    nonce = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {nonce}\r\n{authentication}{extra}\r\n"
    ).encode()


def connect(port: int, *, receive_buffer: int | None = None, timeout: float = 10.0) -> socket.socket:
    """A connection to loopback."""
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(timeout)
    connection.connect(("127.0.0.1", port))
    return connection


def read_head(connection: socket.socket) -> bytes:
    """What comes up to an empty line, or to the end."""
    head = b""
    while b"\r\n\r\n" not in head:
        byte = connection.recv(1)
        if not byte:
            break
        head += byte
    return head


def websocket(port: int, key: str | None, *, receive_buffer: int | None = None, path: str = "/ws") -> socket.socket:
    """An open WebSocket."""
    connection = connect(port, receive_buffer=receive_buffer)
    connection.sendall(handshake(key, path=path))
    answer = read_head(connection)
    if b" 101 " not in answer:
        connection.close()
        raise ConnectionError(f"expected 101, found {answer[:40]!r}")
    return connection


def text(message: object) -> bytes:
    """A message as a frame; a text as it is."""
    return frame(TEXT, (message if isinstance(message, str) else json.dumps(message)).encode())


class Reader:
    """Frames of a server, one at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rb")

    def frame(self) -> tuple[int, bytes]:
        """The next one: opcode and payload.

        Raises:
            ConnectionError: there is none any more.
        """
        head = self._read(2)
        size = head[1] & 0x7F
        if size == 126:
            size = int.from_bytes(self._read(2), "big")
        elif size == 127:
            size = int.from_bytes(self._read(8), "big")
        return head[0] & 0x0F, self._read(size)

    def message(self) -> dict[str, object]:
        """The next message.

        Raises:
            ConnectionError: there is none any more.
        """
        while True:
            opcode, payload = self.frame()
            if opcode == CLOSE:
                raise ConnectionError("expected a message, found a close")
            if opcode == TEXT:
                message = json.loads(payload)
                assert isinstance(message, dict)
                return message

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise ConnectionError("expected a frame, found the end")
        return data


def to_the_end(connection: socket.socket) -> bytes:
    """Everything that still comes; a reset is an end too."""
    found = b""
    try:
        while data := connection.recv(65_536):
            found += data
    except ConnectionError:
        pass
    return found


def flood(connection: socket.socket, piece: bytes, times: int) -> bool:
    """Send until it is over, or the peer has had enough; whether it had."""
    try:
        for _ in range(times):
            connection.sendall(piece)
    except OSError:
        return True
    return False
