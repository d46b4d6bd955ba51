"""HTTP as a stranger may try it, against the real server in this process."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from contextlib import closing, suppress

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from runtime import defaults
from runtime.server.front import config
from runtime.server.front.config import FrontError, check_uvicorn
from runtime.server.front.heads import HEAD_BYTES
from runtime.server.front.http import LINGER_BYTES, HttpFront
from runtime.server.front.websocket import WebSocketFront
from tests.attack import raw
from tests.harness.scripted import KEY, Running, serving
from tests.harness.waiting import all_gone, eventually

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def ask(port: int, request: bytes) -> bytes:
    """What a request is answered, to the end of the connection. What cannot be sent any more is not sent."""
    with closing(raw.connect(port)) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass
        return raw.to_the_end(connection)


async def asked(running: Running, request: bytes) -> bytes:
    return await asyncio.to_thread(ask, running.port, request)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /ws?" + b"x" * (1 << 20), 414),
        (b"GET /ws HTTP/1.1\r\n" + b"X-A: " + b"a" * (1 << 20), 431),
        (b"GET /ws HTTP/1.1\r\n" + b"X: y\r\n" * 5000, 431),
        (b"GET /ws HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n", 431),
        (b"GET /ws HTTP/1.1\r\n" + b"a" * 20_000 + b": b\r\n\r\n", 431),
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 50_000, 411),
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + b"a" * 500_000, 413),
        (b"GET /healthz HTTP/1.1\nHost: x\n\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX: \x00\r\n\r\n", 400),
        (b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
        (b"GET /ws HTTP/1.0\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", None),
        (b"POST /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", None),
    ],
)
async def test_what_is_too_much_is_refused_and_the_peer_sees_why(request_bytes: bytes, status: int | None) -> None:
    async with serving() as running:
        answer = await asked(running, request_bytes)
        statuses = (status,) if status else (400, 405, 505)  # websockets' own, and it has changed its mind
        assert answer[:13] in [b"HTTP/1.1 %d " % known for known in statuses], answer[:60]
        assert b"connection: close" in answer.lower()
        await all_gone(running)
        assert ask_ok(await asked(running, GET))


def ask_ok(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 200 ")


HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: {connection}\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{more}\r\n"
)
PLAIN = {"path": "/ws", "connection": "Upgrade", "more": ""}
# Each fills a line with what some parser behind the front reads piece by piece.
COSTLY = {
    "a query": {"path": "/ws?" + "a=%41&" * 1300},
    "a query of names": {"path": "/ws?" + "&".join(f"a{number}" for number in range(1100))},
    "a path": {"path": "/" + "%41/" * 2000},
    "connection": {"connection": "Upgrade" + ",a" * 4000},
    "spaces": {"connection": "Upgrade" + " ,\t" * 2600},
    "protocols": {"more": ("Sec-WebSocket-Protocol: a" + ",a" * 3900 + "\r\n") * 2},
    "extensions": {"more": "Sec-WebSocket-Extensions: permessage-deflate" + ",permessage-deflate" * 400 + "\r\n"},
    "parameters": {"more": "Sec-WebSocket-Extensions: a" + ";a=1" * 1900 + "\r\n"},
    "an origin": {"more": "Origin: http://" + "a." * 4000 + "\r\n"},
    "a bearer": {"more": "Authorization: Bearer" + " a" * 4000 + "\r\n"},
    "a cookie": {"more": "Cookie: " + "a=b;" * 2000 + "\r\n"},
    "fields": {"more": "".join(f"A{number}: {'x' * 140}\r\n" for number in range(90))},
}


async def test_no_head_costs_much_more_than_another() -> None:
    def answered(text: bytes) -> bytes:
        with closing(raw.connect(running.port)) as connection:
            connection.sendall(text)
            return bytes(connection.recv(4096))

    async def seconds(**parts: str) -> float:
        """CPU of this thread, which is the server's, at best."""
        text, best = HANDSHAKE.format(**PLAIN | parts).encode(), float("inf")
        for _ in range(6):
            began = time.thread_time()
            assert await asyncio.to_thread(answered, text)
            best = min(best, time.thread_time() - began)
        return best

    async with serving() as running:
        await seconds()
        plain = await seconds()
        assert {name for name, parts in COSTLY.items() if await seconds(**parts) > 5 * plain} == set()


async def test_a_head_may_come_byte_by_byte_and_in_any_pieces() -> None:
    async with serving() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        for byte in GET:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_connection_serves_one_request_after_another_and_some_that_did_not_wait() -> None:
    async with serving() as running, httpx.AsyncClient() as client:
        for _ in range(5):
            assert (await client.get(f"http://127.0.0.1:{running.port}/healthz")).status_code == 200
        assert len(running.service.sockets._all) == 1
        few = HEAD_BYTES // len(GET) - 1
        assert (await asked(running, GET * few)).count(b"HTTP/1.1 200 ") == few


async def test_requests_that_nobody_reads_have_an_end() -> None:
    async with serving() as running:
        connection = raw.connect(running.port, receive_buffer=4096)
        with closing(connection):
            await asyncio.to_thread(raw.flood, connection, GET * 1000, 200)
        await all_gone(running)


async def test_a_refused_peer_that_goes_on_sending_is_cut_off() -> None:
    async with serving() as running:
        with closing(raw.connect(running.port)) as connection:
            assert await asyncio.to_thread(raw.flood, connection, b"a" * 65_536, 40 * LINGER_BYTES // 65_536)
        await all_gone(running)


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /ws HTTP/1.1\r\nHost: x\r\n", raw.handshake(KEY)[:-2]])
async def test_whoever_does_not_ask_in_time_is_dropped(sent: bytes) -> None:
    async with serving(handshake_deadline_s=0.2) as running:
        connections = [raw.connect(running.port) for _ in range(20)]
        for connection in connections:
            connection.sendall(sent)
        await eventually(lambda: len(running.service.sockets._all) == 20)
        await all_gone(running)
        assert b'yap_sockets_dropped_total{reason="deadline"} 20.0' in running.service.metrics.render()
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("wait", [0.0, 0.6])
async def test_between_requests_a_connection_waits_longer_than_one_may_take(wait: float) -> None:
    """Whoever stands before the server keeps connections for a minute or two: who closes first loses no request."""
    async with serving(handshake_deadline_s=0.2) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        for _ in range(3):
            writer.write(GET)
            assert b"live" in await reader.readuntil(b"}")
            await asyncio.sleep(wait)
        assert b'yap_sockets_dropped_total{reason="deadline"} 0.0' in running.service.metrics.render()
        writer.write(b"GET /heal")
        assert await read_rest(reader) == b""
        assert b'yap_sockets_dropped_total{reason="deadline"} 1.0' in running.service.metrics.render()
        writer.close()


def test_connections_are_kept_longer_than_by_what_stands_before_the_server() -> None:
    nginx, caddy = 60, 120  # what they do unless told otherwise
    assert max(nginx, caddy) < defaults.KEEP_ALIVE_S


async def test_tls_where_there_is_none_is_told_so_at_once() -> None:
    async with serving(handshake_deadline_s=1000) as running:
        hello = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent := ssl.MemoryBIO(), server_hostname="x")
        with pytest.raises(ssl.SSLWantReadError):
            hello.do_handshake()
        assert (await asked(running, sent.read())).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("request_line", [b"GET http://x/healthz HTTP/1.1", b"\r\n\r\nGET /healthz HTTP/1.1"])
async def test_what_the_standard_lets_clients_write_is_understood(request_line: bytes) -> None:
    async with serving() as running:
        assert ask_ok(await asked(running, request_line + b"\r\nHost: x\r\n\r\n"))


async def test_a_byte_now_and_then_does_not_move_the_deadline() -> None:
    async with serving(handshake_deadline_s=0.3) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
        for _ in range(2000):
            if reader.at_eof() or reader.exception() is not None:
                break
            writer.write(b"a")
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("it was not dropped within 20 s")
        assert await read_rest(reader) == b""
        writer.close()


async def read_rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def test_silence_shuts_nobody_out() -> None:
    async with serving(max_unadmitted_sockets=10, handshake_deadline_s=1000) as running:
        silent = []
        for _ in range(10):
            for _ in range(20):
                connection = raw.connect(running.port)
                connection.sendall(b"GET")
                silent.append(connection)
            assert ask_ok(await asked(running, GET))
            async with running.client() as client:
                await client.send(type="ping")
                assert (await client.receive())["type"] == "pong"
            assert running.service.sockets.unadmitted <= 10
        for connection in silent:
            connection.close()


async def test_admitted_clients_are_in_no_crowd_and_have_no_deadline() -> None:
    async with serving(max_unadmitted_sockets=3, handshake_deadline_s=0.2) as running, running.client() as client:
        strangers = [raw.connect(running.port) for _ in range(30)]
        await eventually(lambda: b'reason="too_many"' in running.service.metrics.render())
        await all_gone(running, but=1)
        await client.send(type="ping")
        assert (await client.receive())["type"] == "pong"
        for stranger in strangers:
            stranger.close()


def test_another_uvicorn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_uvicorn()
    monkeypatch.setattr(config.uvicorn, "__version__", "0.55.0")
    with pytest.raises(FrontError, match=r"expected 0\.54\.x, found 0\.55\.0"):
        check_uvicorn()


def test_what_is_overridden_is_there() -> None:
    own = {
        "leaving",
        "take_over",
        "send_piece",
        "__init__",
        "__module__",
        "__doc__",
        "__static_attributes__",
        "__firstlineno__",
    }
    for ours, theirs in ((HttpFront, H11Protocol), (WebSocketFront, WebSocketsSansIOProtocol)):
        public = {name for name in vars(ours) if not name.startswith("_")} - own
        assert public <= set(dir(theirs)), public - set(dir(theirs))


PIECES = st.sampled_from(
    [
        b"GET /healthz HTTP/1.1\r\n", b"GET ", b"/ws", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b"\n", b"Host: x\r\n",
        b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n", b"Sec-WebSocket-Version: 13\r\n", b"0\r\n\r\n",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", b"Expect: 100-continue\r\n", b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n", b"PRI * HTTP/2.0\r\n", b"X: " + b"a" * 5000 + b"\r\n", b"\x00", b":",
        b"X-API-Key: wrong\r\n", b"Connection: close\r\n",
    ]
)  # fmt: skip


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.lists(st.one_of(PIECES, st.binary(max_size=60)), max_size=12).map(b"".join), min_size=1, max_size=8))
def test_no_bytes_make_the_server_deaf_or_leave_anything_behind(requests: list[bytes]) -> None:
    async def run() -> None:
        async with serving(handshake_deadline_s=0.5) as running:
            writers = []
            for request in requests:
                _, writer = await asyncio.open_connection("127.0.0.1", running.port)
                writer.write(request)
                writers.append(writer)
            assert ask_ok(await asked(running, GET))
            for writer in writers:
                writer.transport.abort()
            await all_gone(running)
            assert running.service.admission.held == 0

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/healthz", "/v1/completions"])
async def test_a_step_that_fails_in_its_turn_ends_its_connection(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever raises there: who is not read any more would be held for ever."""

    def fails(front: object) -> None:
        raise RuntimeError("on purpose")

    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))
    async with serving() as running:
        for step in ("_read_head", "_read_direct_head"):
            monkeypatch.setattr(HttpFront, step, fails)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
    assert [type(one) for one in raised] == [RuntimeError]
