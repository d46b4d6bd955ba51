"""The admin port: `POST /drain` does what SIGTERM does, for who cannot send a signal.

It listens on loopback, or asks for a token. A browser is refused in any case: a page that somebody visits on the
server's machine could send a POST there.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping

from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

# Open sockets on this port, and the time that a request may take.
SOCKETS, DEADLINE_S = 16, 5.0


def create_admin_app(leave: Callable[[], Mapping[str, object]], token: SecretStr | None) -> Starlette:
    """Make the application.

    Args:
        leave: has the server leave, and says where it stands; called again, only says that.
        token: what a request must bear; none where only this machine can reach the port.
    """

    async def drain(request: Request) -> Response:
        if request.headers.get("origin") is not None:
            return JSONResponse({"error": "this is nothing for a browser"}, status_code=403)
        if token is not None and not _bears(request, token):
            return JSONResponse(
                {"error": "expected `Authorization: Bearer` with the token of ADMIN_TOKEN_FILE"},
                status_code=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        return JSONResponse(dict(leave()), status_code=202)

    return Starlette(routes=[Route("/drain", drain, methods=["POST"])])


def _bears(request: Request, token: SecretStr) -> bool:
    scheme, _, offered = request.headers.get("authorization", "").strip().partition(" ")
    same = hmac.compare_digest(_digest(offered.strip()), _digest(token.get_secret_value()))
    return scheme.lower() == "bearer" and same


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
