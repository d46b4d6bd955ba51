"""How uvicorn is run: with our protocols, and only in the version that they were written against."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

import uvicorn
from starlette.types import ASGIApp

from runtime.server.front.direct import Direct
from runtime.server.front.heads import Bodies, refusal
from runtime.server.front.sockets import Sockets
from runtime.server.front.throttle import LoopThrottle

# The protocols are subclasses of uvicorn's own, whose insides are nobody's promise.
UVICORN = "0.54."

# A handshake costs half a millisecond by the time it is answered; a request that goes past the parser a fifth of that
# where it shows no key. Where it shows one, those that come at once reach the engine before it has said much to the
# first of them. 4 KiB cost next to nothing in a long message, and some milliseconds in a run of the smallest frames:
# the throttle looks at the time.
HEADS_AT_ONCE = 4
DIRECT_AT_ONCE = 16
SLICES_AT_ONCE = 64


class FrontError(Exception):
    """The installed uvicorn is another one than the bounds are written for."""


@dataclass(frozen=True, slots=True)
class Front:
    """What all connections share.

    Attributes:
        sockets: all that are open.
        bodies: paths that take a body.
        direct: what goes past the parser and the application.
        explain: the answer to a head that is refused, of what has come of it and its status.
        heads: those that wait to be read by a parser.
        direct_heads: those that may not need one.
        slices: pieces of what came over WebSockets.
    """

    sockets: Sockets
    bodies: Bodies = field(default_factory=dict)
    direct: Direct = field(default_factory=dict)
    explain: Callable[[bytes, HTTPStatus], bytes] = lambda head, status: refusal(status)
    heads: LoopThrottle = field(default_factory=lambda: LoopThrottle(HEADS_AT_ONCE))
    direct_heads: LoopThrottle = field(default_factory=lambda: LoopThrottle(DIRECT_AT_ONCE))
    slices: LoopThrottle = field(default_factory=lambda: LoopThrottle(SLICES_AT_ONCE))


def check_uvicorn() -> None:
    """Call before anything is served.

    Raises:
        FrontError: uvicorn is not the one.
    """
    if not uvicorn.__version__.startswith(UVICORN):
        raise FrontError(f"uvicorn: expected {UVICORN}x, found {uvicorn.__version__}; install the locked version")


class FrontConfig(uvicorn.Config):
    """uvicorn's configuration with our bounds."""

    def __init__(
        self,
        app: ASGIApp,
        front: Front,
        *,
        http: type[asyncio.Protocol],
        ws: type[asyncio.Protocol],
        max_message_bytes: int,
        backlog: int,
        keep_alive: float,
    ) -> None:
        """Serve `app` behind `front` with these two protocols.

        Raises:
            FrontError: uvicorn is not the one.
        """
        check_uvicorn()
        self.front = front
        super().__init__(
            app,
            http=http,
            ws=ws,
            ws_max_size=max_message_bytes,
            ws_per_message_deflate=False,
            # A slow reader answers pings late; silence is judged by the idle timeout alone.
            ws_ping_interval=None,
            ws_ping_timeout=None,
            backlog=backlog,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            timeout_keep_alive=keep_alive,  # type: ignore[arg-type] # given to a timer, which takes any number
        )
