"""The handshake: a socket is opened at an address, with a key that goes there and nowhere else."""

from __future__ import annotations

import asyncio
import hashlib
import re
from urllib.parse import urljoin

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as handshake
from websockets.exceptions import InvalidHandshake, InvalidProxy, InvalidStatus, InvalidURI

from yap_client.errors import AuthenticationError, ProtocolError, ServerGoneError, YapError

SESSION_HEADER = "X-Session-Id"
KEY_HEADER = "X-API-Key"
# What goes through every proxy as it is.
PLAIN = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")
CLOSE_TIMEOUT_S = 2.0
MOST_FRAME_BYTES = 2**22
SENDABLE_KEY = re.compile(r"[ -~]*")
# What an address may have before its host, whatever a password is made of.
USER = re.compile(r"^([\w+.-]*:?//)?.*@", re.DOTALL)
# Of an address that is told, so much.
MOST_SHOWN = 200
# Statuses of a handshake that say that a later one may succeed.
PASSING = frozenset({408, 425, 429})
# Where a server has its WebSocket.
PATH = "/ws"


class _Handshake(handshake):
    """A handshake that goes to the address that was given, and follows no redirect: the key would go with it."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Say that nothing is to be followed."""
        return exc


def routing_key(session: str) -> str:
    """The session's name as a router sees it: itself where a header can hold it, else its hash.

    >>> routing_key("caller-42"), routing_key("Ä")
    ('caller-42', '2fe5ca1c1a3d50bd92f1d3cf6da34ceddabe02022b2a0183ab0b805ada6f787a')
    """
    return session if PLAIN.fullmatch(session) else hashlib.sha256(session.encode()).hexdigest()


def shown(url: str) -> str:
    """An address as an error may tell it: a key may be behind it, and a password in it.

    >>> shown("me:p@ss@example.com:1")
    'example.com:1'
    >>> shown("wss://me:secret@example.com/ws?api_key=secret")
    'wss://example.com/ws'
    """
    return USER.sub(r"\1", re.split("[?#]", url, maxsplit=1)[0])[:MOST_SHOWN]


async def open_socket(url: str, key: str, session: str, timeout: float) -> ClientConnection:
    """Open a socket.

    Args:
        url: the server's WebSocket; may hold a key.
        key: an API key, which travels in a header; empty for none.
        session: the session's name.
        timeout: seconds that it may take.

    Raises:
        YapError: there is none.
    """
    headers = {SESSION_HEADER: routing_key(session)}
    if key:
        headers[KEY_HEADER] = key
    if not SENDABLE_KEY.fullmatch(key):
        raise AuthenticationError(
            "the key has characters that a field of a head cannot hold; put it into the address: ?api_key=…, "
            "percent-encoded"
        )
    try:
        return await _Handshake(
            url,
            additional_headers=headers,
            compression=None,
            max_size=MOST_FRAME_BYTES,
            open_timeout=timeout,
            close_timeout=CLOSE_TIMEOUT_S,
        )
    except (InvalidURI, ValueError) as wrong:
        why = wrong.msg if isinstance(wrong, InvalidURI) else wrong
        error: YapError = ProtocolError(
            f"expected an address such as ws://127.0.0.1:8000{PATH}, found {shown(url)}: {why}"
        )
    except InvalidProxy as wrong:
        proxy = f"the proxy that the environment names, {shown(wrong.proxy)}, is none: {wrong.msg}"
        error = ServerGoneError(f"cannot reach {shown(url)}: {proxy}")
    except ImportError as wrong:  # of what a proxy of the environment needs
        error = ServerGoneError(f"cannot reach {shown(url)}: {wrong}")
    except InvalidStatus as answer:
        error = _refused(url, answer)
    except (OSError, asyncio.TimeoutError, InvalidHandshake, EOFError) as wrong:
        why = str(wrong) or f"no answer within {timeout:g} s"
        error = ServerGoneError(f"cannot reach {shown(url)}: {why}")
    raise error


def _refused(url: str, answer: InvalidStatus) -> YapError:
    """What an answer that opens no socket means."""
    status, address = answer.response.status_code, shown(url)
    if status in (401, 403):
        return AuthenticationError(f"{address} answered {status}")
    told = f"cannot reach {address}: it answered {status}"
    if 300 <= status < 400:
        to = _target(url, answer)
        return ServerGoneError(f"{told}, a redirect{to}; none is followed, for the key would go with it")
    if status == 404 and not address.rstrip("/").endswith(PATH):
        told = f"{told}; a server has its WebSocket at {PATH}, as in ws://127.0.0.1:8000{PATH}"
    return (ProtocolError if 400 <= status < 500 and status not in PASSING else ServerGoneError)(told)


def _target(url: str, answer: InvalidStatus) -> str:
    """Where a redirect sends, as a client would be told to go there; empty where it says nothing."""
    for location in answer.response.headers.get_all("Location"):
        try:
            to = shown(urljoin(url, location))
        except ValueError:
            continue
        return " to " + re.sub("^http", "ws", to) if to.isprintable() else ""
    return ""
