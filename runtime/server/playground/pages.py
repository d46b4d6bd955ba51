"""The page's files, read once, each with headers that let it load nothing from elsewhere and be framed by nobody."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/playground.css": ("playground.css", "text/css; charset=utf-8"),
    "/playground.js": ("playground.js", "text/javascript; charset=utf-8"),
}
# `connect-src 'self'` covers the WebSocket of the same host and port.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # the next version of the server brings the next version of the page
}


def routes() -> list[Route]:
    """Return a route for each file of the page.

    Raises:
        OSError: a file is not in the package.
    """
    return [_route(path, (FOLDER / name).read_bytes(), media_type) for path, (name, media_type) in FILES.items()]


def _route(path: str, content: bytes, media_type: str) -> Route:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return Route(path, answer)
