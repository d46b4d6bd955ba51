"""A client's WebSocket connection to the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

from .frames import Error, Frame, parse
from .options import Options
from .turn import TurnRecord

# Errors that end the connection before it begins.
REFUSALS = frozenset({"authentication_failed", "server_at_capacity"})


class ClientError(Exception):
    """The server refused, vanished, or did not answer in time."""


class Client:
    """Typed frames over one socket; methods that wait raise ClientError after `recv_timeout` seconds of silence."""

    def __init__(self, socket: ClientConnection, recv_timeout: float) -> None:
        self.socket = socket
        self.recv_timeout = recv_timeout

    async def send(self, type_: str, **fields: Any) -> None:
        # What the server said before it closed is still to be read, so it is `recv` that tells.
        """Send one message of a type."""
        with suppress(websockets.ConnectionClosed):
            await self.socket.send(json.dumps({"type": type_, **fields}))

    async def recv(self) -> Frame:
        """Receive the next frame; a refusal of the whole connection is raised."""
        try:
            frame = parse(await asyncio.wait_for(self.socket.recv(decode=True), self.recv_timeout))
        except asyncio.TimeoutError:
            raise ClientError(f"expected a frame within {self.recv_timeout:g} s, got none") from None
        except websockets.ConnectionClosed as closed:
            code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "no close frame")
            raise ClientError(f"the server closed the connection: {code} {reason}".rstrip()) from None
        except ValueError as error:
            raise ClientError(f"the server does not speak this protocol: {error}") from None
        if isinstance(frame, Error) and frame.code in REFUSALS:
            raise ClientError(f"{frame.code}: {frame.message}")
        return frame

    async def until(self, *kinds: str) -> Frame:
        """Receive up to the next frame of one of these types; an `error` on the way is raised."""
        while True:
            frame = await self.recv()
            if frame.type in kinds:
                return frame
            if isinstance(frame, Error):
                raise ClientError(f"{frame.code}: {frame.message}")

    async def frames(self, turn: TurnRecord) -> AsyncIterator[Frame]:
        """Yield the frames of a turn that was just begun, as they come, up to and with its `done`."""
        over = False
        while not over:
            frame = await self.recv()
            over = turn.add(frame)
            yield frame

    async def start(self, **fields: Any) -> TurnRecord:
        """Send `start` and follow its turn to the end."""
        return await self._whole("start", fields)

    async def followup(self, **fields: Any) -> TurnRecord:
        """Send `followup` and follow its turn to the end."""
        return await self._whole("followup", fields)

    async def _whole(self, type_: str, fields: dict[str, Any]) -> TurnRecord:
        turn = TurnRecord()
        await self.send(type_, **fields)
        async for _ in self.frames(turn):
            pass
        return turn

    async def ping(self) -> None:
        """Send a ping and wait for the pong: a server sends nothing by itself to a client that it accepted."""
        await self.send("ping")
        await self.until("pong")

    async def end(self) -> None:
        """Send `end` and wait for the server to close."""
        await self.send("end")
        await self.until("connection_closed")
        await self.socket.wait_closed()


@asynccontextmanager
async def connect(options: Options) -> AsyncIterator[Client]:
    """Open a socket; the key travels in a header, so that it reaches no access log."""
    headers = {"X-API-Key": options.api_key} if options.api_key else {}
    try:
        socket = await websockets.connect(
            options.url, additional_headers=headers, compression=None, max_size=2**22, open_timeout=options.recv_timeout
        )
    except (websockets.InvalidURI, ValueError) as error:
        raise ClientError(f"--server: expected an address such as ws://127.0.0.1:8000/ws, found {error}") from None
    except (OSError, asyncio.TimeoutError, websockets.InvalidHandshake) as error:
        why = error or f"no answer within {options.recv_timeout:g} s"
        raise ClientError(f"cannot reach {options.url}: {why}; is the server running?") from None
    try:
        yield Client(socket, options.recv_timeout)
    finally:
        await socket.close()
