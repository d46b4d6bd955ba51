"""The handshake: where the key goes, and what is said of an answer that opens no socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.scripted import KEY, serving
from tests.harness.waiting import eventually
from yap_client import AuthenticationError, Backoff, ProtocolError, ServerGoneError, YapError, connect
from yap_client.network.handshake import shown

SECRET = "s3cret-k3y"


@asynccontextmanager
async def answering(*head: str, host: str = "127.0.0.1") -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that answers every handshake with this head; its port, and the requests that came."""
    requests: list[bytes] = []
    tasks: list[asyncio.Task[None] | None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write("\r\n".join((*head, "Content-Length: 0", "Connection: close", "", "")).encode())
        writer.close()
        with contextlib.suppress(ConnectionError):  # of a client that has gone already
            await writer.wait_closed()

    async with await asyncio.start_server(answer, host, 0) as server:
        yield server.sockets[0].getsockname()[1], requests
        await asyncio.gather(*filter(None, tasks))


async def refusal(url: str, key: str | None = SECRET) -> YapError:
    with pytest.raises(YapError) as refused:
        await connect(url, key, backoff=None).__aenter__()
    assert SECRET not in str(refused.value)
    return refused.value


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["ws", "http", ""])
async def test_a_key_follows_no_redirect_and_the_error_says_where_it_was_sent(status: int, scheme: str) -> None:
    async with answering("HTTP/1.1 404 Not Found", host="127.0.0.2") as (port, requests):
        to = f"{scheme}:" * bool(scheme) + f"//me:{SECRET}@127.0.0.2:{port}/x?api_key={SECRET}"
        async with answering(f"HTTP/1.1 {status} Elsewhere", f"Location: {to}") as (first, asked):
            error = await refusal(f"ws://127.0.0.1:{first}/ws?api_key={SECRET}")
            assert len(asked) == 1
        assert requests == []
    assert isinstance(error, ServerGoneError)
    expected = f"cannot reach ws://127.0.0.1:{first}/ws: it answered {status}, a redirect to ws://127.0.0.2:{port}/x;"
    assert str(error).startswith(expected)


@pytest.mark.parametrize("location", ["/other", "", "ws://[", "http://127.0.0.1:99999/x", "?", "x" * 4000])
async def test_a_redirect_within_the_server_or_to_nowhere_is_not_followed_either(location: str) -> None:
    async with answering("HTTP/1.1 302 Found", f"Location: {location}") as (port, asked):
        error = await refusal(f"ws://127.0.0.1:{port}/ws")
        assert len(asked) == 1
    assert "answered 302, a redirect" in str(error)
    assert len(str(error)) < 400


async def test_a_redirect_without_a_place_is_told_too() -> None:
    async with answering("HTTP/1.1 302 Found") as (port, _):
        assert "answered 302, a redirect;" in str(await refusal(f"ws://127.0.0.1:{port}/ws"))


async def test_a_redirect_between_two_connections_is_no_end() -> None:
    """Of a network that asks its guests to log in, say."""
    patience = Backoff(first=0.01, most=0.05, within=30)
    async with serving() as running, connect(running.url, KEY, backoff=patience) as talk:
        before = await talk.say("one").reply()
        async with answering("HTTP/1.1 302 Found", "Location: http://127.0.0.2/login") as (port, asked):
            talk._connection._url = f"ws://127.0.0.1:{port}/ws"
            assert talk._connection.socket is not None
            talk._connection.socket.transport.abort()
            await eventually(lambda: asked)
            talk._connection._url = running.url
        assert await talk.say("two").reply() == before


@pytest.mark.parametrize("path", ["", "/", "/chat", "/ws/chat"])
async def test_a_server_that_has_no_such_path_is_asked_at_ws(path: str) -> None:
    async with serving() as running:
        host = running.url.removesuffix("/ws")
        error = await refusal(host + path, KEY)
    assert isinstance(error, (ProtocolError, AuthenticationError))
    assert "a server has its WebSocket at /ws" in str(error)


@pytest.mark.parametrize("path", ["/ws", "/ws/", "/behind/ws?x=1"])
async def test_who_asks_at_ws_already_is_not_told_to(path: str) -> None:
    async with answering("HTTP/1.1 404 Not Found") as (port, _):
        error = await refusal(f"ws://127.0.0.1:{port}{path}")
    assert isinstance(error, ProtocolError)
    assert str(error).endswith("answered 404")


@given(st.text(), st.text(), st.sampled_from("?#"), st.sampled_from(["wss://", "//", "http://", ""]))
def test_nothing_before_and_behind_an_address_is_told(text: str, path: str, mark: str, scheme: str) -> None:
    told = shown(f"{scheme}{text}:{SECRET}{text}@host/{path}{mark}{SECRET}")
    assert SECRET not in told
    if not set(text) & set("/@?#") | set(path) & set("@?#"):
        assert told == f"{scheme}host/{path}"[:200]


@pytest.mark.parametrize(
    ("proxy", "why"),
    [
        ("SOCKS_PROXY=socks5://me:{}@127.0.0.1:1", "cannot reach ws://127.0.0.1:1/ws: "),
        ("HTTP_PROXY=me:{}@127.0.0.1:1", "cannot reach ws://127.0.0.1:1/ws: the proxy that the environment names"),
        ("HTTP_PROXY=ftp://me:{}@127.0.0.1:1", "ftp://127.0.0.1:1, is none: scheme ftp isn't supported"),
        ("HTTP_PROXY=http://me:{}@127.0.0.1:1", "cannot reach ws://127.0.0.1:1/ws: "),
        ("HTTP_PROXY=http://me:{}@[:1", "ws://127.0.0.1:1/ws"),
        ("HTTP_PROXY=", "cannot reach ws://127.0.0.1:1/ws: "),
    ],
)
async def test_a_proxy_of_the_environment_that_is_of_no_use_is_told(
    proxy: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SOCKS_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    name, _, value = proxy.partition("=")
    monkeypatch.setenv(name, value.format(SECRET))
    assert why in str(await refusal("ws://127.0.0.1:1/ws"))
