"""Requests that go past h11: none that it would refuse or read otherwise, and their answers are what it would write."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any
from unittest.mock import Mock

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import RequestResponseCycle
from uvicorn.server import ServerState

from runtime.server.front.config import DIRECT_AT_ONCE, Front
from runtime.server.front.direct import DirectCycle
from runtime.server.front.heads import Bodies, Head, HeadRefused, plain, read_head
from runtime.server.front.http import HttpFront
from runtime.server.front.throttle import LoopThrottle, Step
from tests.harness.scripted import KEY, Running, ScriptedEngine, serving
from tests.harness.waiting import eventually

LINE = b"POST /v1/chat/completions HTTP/1.1"
BODIES = {b"/v1/": 1_000_000}
# Heads as clients send them, each with what follows.
USUAL = {
    "openai": [
        b"Host: localhost:8000", b"Accept-Encoding: gzip, deflate", b"Connection: keep-alive",
        b"Accept: application/json", b"Content-Type: application/json", b"User-Agent: OpenAI/Python 2.1.0",
        b"X-Stainless-Async: async:asyncio", b"Authorization: Bearer k", b"Content-Length: 3",
    ],
    "curl": [b"Host: a", b"User-Agent: curl/8", b"Accept: */*", b"X-API-Key: k", b"Content-Length: 3"],
    "a browser": [b"host: a", b"content-length: 3", b"origin: https://a.example", b"sec-fetch-mode: cors"],
    "a proxy": [b"Host: a", b"X-Forwarded-For: 1.2.3.4, 5.6.7.8", b"Via: 1.1 x", b"Content-Length: 3", b"Cookie: \xe9"],
}  # fmt: skip


def whole(fields: Iterable[bytes], line: bytes = LINE) -> bytes:
    return b"\r\n".join((line, *fields)) + b"\r\n\r\n"


def taken(head: bytes) -> Head | None:
    """What is served without h11; none where it is refused, or h11 reads it."""
    try:
        found = read_head(head, BODIES)
    except HeadRefused:
        return None
    return found if plain(head[: found.size], found) and not found.websocket else None


def check_against_h11(head: bytes) -> bool:
    """That h11 reads the same in a head that is taken, and goes on behind it as we do; whether it was taken."""
    found = taken(head)
    if found is None:
        return False
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head[: found.size])
    request = connection.next_event()  # raises what it refuses
    assert isinstance(request, h11.Request)
    assert b" ".join((request.method, request.target, b"HTTP/" + request.http_version)) == found.request
    assert tuple(request.headers) == found.fields
    assert not connection.they_are_waiting_for_100_continue
    connection.receive_data(b"a" * found.body + b"behind it")
    if found.body:
        assert connection.next_event() == h11.Data(data=b"a" * found.body)
    assert connection.next_event() == h11.EndOfMessage()
    assert connection.next_event() is h11.PAUSED
    assert connection.trailing_data == (b"behind it", False)
    assert connection.their_state is h11.DONE  # not MUST_CLOSE, nor a switch of protocols
    return True


@pytest.mark.parametrize("client", USUAL)
def test_usual_heads_go_past_h11(client: str) -> None:
    assert check_against_h11(whole(USUAL[client]))


NOT_PLAIN = {
    "no host": [b"Content-Length: 3"],
    "two hosts": [b"Host: a", b"Host: a"],
    "an expectation": [b"Host: a", b"Expect: 100-continue"],
    "another expectation": [b"Host: a", b"expect: x"],
    "a last request": [b"Host: a", b"Connection: close"],
    "a list of wishes": [b"Host: a", b"Connection: keep-alive, close"],
    "two wishes": [b"Host: a", b"Connection: keep-alive", b"Connection: close"],
    "an upgrade": [b"Host: a", b"Connection: Upgrade", b"Upgrade: h2c"],
    "an upgrade without more": [b"Host: a", b"Upgrade: h2c"],
    "chunks": [b"Host: a", b"Transfer-Encoding: chunked"],
    "chunks beside a length": [b"Host: a", b"Content-Length: 3", b"Transfer-Encoding: chunked"],
    "a length twice": [b"Host: a", b"Content-Length: 3", b"Content-Length: 3"],
    "a list of lengths": [b"Host: a", b"Content-Length: 3, 3"],
    "a signed length": [b"Host: a", b"Content-Length: +3"],
    "a folded line": [b"Host: a", b"X: a", b" b"],
    "a folded first line": [b" Host: a"],
    "a bare line feed": [b"Host: a\nX: y"],
    "a bare carriage return": [b"Host: a\rX: y"],
    "space before the colon": [b"Host: a", b"Content-Length : 3"],
    "no colon": [b"Host: a", b"X"],
    "no name": [b"Host: a", b": x"],
    "a name that is no token": [b"Host: a", b"X(y): z"],
    "a null": [b"Host: a", b"X: a\x00b"],
    "a control character": [b"Host: a", b"X: a\x0bb"],
    "a delete": [b"Host: a", b"X: a\x7fb"],
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_is_not_plain_is_left_to_a_parser(kind: str) -> None:
    assert taken(whole(NOT_PLAIN[kind])) is None


@pytest.mark.parametrize(
    "line",
    [
        b"POST /v1/chat/completions HTTP/1.0",
        b"POST /v1/chat/completions HTTP/2.0",
        b"POST /v1/chat/completions",
        b"POST  /v1/chat/completions HTTP/1.1",
        b"POST /v1/chat/completions HTTP/1.1 ",
        b" POST /v1/chat/completions HTTP/1.1",
        b"POST\t/v1/chat/completions HTTP/1.1",
        b"post /v1/chat/completions HTTP/1.1",
        b"POST /v1/chat/completions? HTTP/1.1",
        b"POST /v1/chat%2Fcompletions HTTP/1.1",
        b"POST http://a/v1/chat/completions HTTP/1.1",
        b"GET /v1/chat/completions HTTP/1.1",
    ],
)
async def test_any_other_first_line_is_left_to_a_parser(line: bytes) -> None:
    async with serving() as running:
        assert line not in running.server.config.front.direct  # type: ignore[attr-defined]
        assert list(running.server.config.front.direct) == [LINE]  # type: ignore[attr-defined]


def test_every_byte_changed_in_every_place() -> None:
    """Exhaustive for a small head: what is taken of these is what h11 reads."""
    head = whole([b"Host: a", b"A:\tb c", b"Content-Length: 12"])
    counted = 0
    for place in range(len(LINE) + 2, len(head) - 4):
        for byte in range(256):
            counted += check_against_h11(head[:place] + bytes((byte,)) + head[place + 1 :])
    assert counted > 1000


FIELD = st.one_of(
    st.sampled_from(sorted({field for fields in (*USUAL.values(), *NOT_PLAIN.values()) for field in fields})),
    st.sampled_from([b"Host: a", b"Content-Length: 3", b"Connection: Keep-Alive", b"X:", b"X: \t y\t ", b"X-Y: a:b"]),
    st.binary(max_size=12),
    st.tuples(st.sampled_from([b"Host", b"hOST", b"Content-Length", b"Connection", b"X"]), st.binary(max_size=6)).map(
        b":".join
    ),
)


@given(st.lists(FIELD, max_size=8), st.sampled_from([LINE, LINE, LINE, b"POST / HTTP/1.0", b"G(T / HTTP/1.1"]))
@example([b"Host: a", b"Content-Length: 3"], LINE)
@example([b"Host: a", b"\xff: b"], LINE)
def test_no_fields_are_taken_that_h11_would_refuse_or_read_otherwise(fields: list[bytes], line: bytes) -> None:
    if line in (LINE, b"POST / HTTP/1.0"):  # any other never is in `direct`
        check_against_h11(whole(fields, line))


# Answers


def request(body: Any, **fields: str) -> bytes:
    sent = json.dumps(body).encode()
    head = {"Host": "x", "X-API-Key": KEY, "Content-Length": str(len(sent)), **fields}
    return whole([f"{name}: {value}".encode() for name, value in head.items()]) + sent


BODY: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
ASKED = {
    "a whole answer": request(BODY),
    "a stream": request({**BODY, "stream": True, "stream_options": {"include_usage": True}}),
    "a browser's": request({**BODY, "stream": True}, Origin="https://a.example"),
    "a wrong key": request(BODY, **{"X-API-Key": "wrong"}),
    "an unknown model": request({**BODY, "model": "gpt"}),
    "no JSON": whole([b"Host: x", b"X-API-Key: " + KEY.encode(), b"Content-Length: 3"]) + b"{a}",
    "an empty body": whole([b"Host: x", b"X-API-Key: " + KEY.encode()]),
}
# What differs between two answers to the same request.
_OWN = re.compile(rb"(req_|chatcmpl-)[0-9a-f]+|date: [^\r]+|\"created\":[0-9]+")


async def answered(running: Running, asked: bytes) -> bytes:
    """What comes until nothing more does, the connection being kept."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    # Behind it, one whose answer is known.
    writer.write(asked + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.readuntil(b'{"status":"live"}')
    writer.close()
    return _OWN.sub(b"-", answer)


@pytest.mark.parametrize("kind", ASKED)
async def test_an_answer_is_what_h11_would_write(kind: str) -> None:
    asked = ASKED[kind]
    async with serving(ScriptedEngine(reply=("one",))) as running:
        direct = await answered(running, asked)
        parsed = await answered(running, asked.replace(b"\r\n", b"\r\nTE: x\r\n", 1))
        assert direct == parsed
        assert direct.startswith(b"HTTP/1.1 ")


async def test_requests_of_both_kinds_are_answered_in_their_order_on_one_connection() -> None:
    engine = ScriptedEngine(script=lambda words: words[1:])
    async with serving(engine) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        others = ({}, {"TE": "x"}, {}, {"Expect": "x"}, {"TE": "x"}, {})
        for number, more in enumerate(others):
            writer.write(request({**BODY, "messages": [{"role": "user", "content": f"n{number}"}]}, **more))
        for number in range(len(others)):
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(re.findall(rb"content-length: (\d+)", head)[0])
            answer = json.loads(await reader.readexactly(size))
            assert answer["choices"][0]["message"]["content"] == f"n{number}"
        writer.close()


@pytest.mark.parametrize("second", [{}, {"TE": "x"}], ids=["plain", "odd"])
@pytest.mark.parametrize("first", [{}, {"TE": "x"}], ids=["plain", "odd"])
async def test_an_answer_takes_its_time_behind_another(first: dict[str, str], second: dict[str, str]) -> None:
    """The time that a connection may be idle begins behind every answer, and ends when the next request is read."""
    async with serving(ScriptedEngine(reply=["word "] * 10, pause=0.02)) as running:
        running.server.config.timeout_keep_alive = 0.05  # type: ignore[assignment]
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        body = {**BODY, "stream": True}
        writer.write(request(body, **first) + request(body, **second))
        for _ in range(2):
            stream = await reader.readuntil(b"0\r\n\r\n")
            assert stream.count(b"word ") == 10
        assert await reader.read() == b""  # and nobody asks for more
        writer.close()


@pytest.mark.parametrize("more", [{}, {"X-API-Key": "wrong"}], ids=["known", "strangers"])
async def test_of_many_requests_at_once_a_few_begin_in_each_step_of_the_loop(
    more: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: Counter[int] = Counter()
    step = 0

    def counting(held: bytearray, bodies: Bodies) -> Head:
        begun[step] += 1
        return read_head(held, bodies)

    async def count_steps() -> None:
        nonlocal step
        while True:
            step += 1
            await asyncio.sleep(0)

    async with serving(ScriptedEngine(reply=("one",)), http_max_requests_per_window=0) as running:
        streams = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(4 * DIRECT_AT_ONCE)]
        monkeypatch.setattr("runtime.server.front.http.read_head", counting)
        counter = asyncio.create_task(count_steps())
        for _, writer in streams:
            writer.write(request(BODY, **more))
        for reader, writer in streams:
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 401" if more else b"HTTP/1.1 ")
            writer.close()
        counter.cancel()
    assert begun.total() == len(streams)
    assert max(begun.values()) <= DIRECT_AT_ONCE


async def test_what_a_parser_reads_waits_in_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[LoopThrottle] = []
    enter = LoopThrottle.enter

    def entering(self: LoopThrottle, step: Step) -> None:
        entered.append(self)
        enter(self, step)

    monkeypatch.setattr(LoopThrottle, "enter", entering)
    async with serving() as running:
        front: Front = running.server.config.front  # type: ignore[attr-defined]
        await answered(running, request(BODY))
        assert entered == [front.direct_heads, front.heads]
        entered.clear()
        await answered(running, request(BODY, TE="x"))  # which only its fields tell
        assert entered == [front.direct_heads, front.heads, front.heads]


async def test_a_long_body_in_pieces_is_read_and_its_client_s_end_is_seen() -> None:
    """A body above uvicorn's high water has reading paused; who hangs up then must be seen all the same."""
    engine = ScriptedEngine(gate=asyncio.Event())
    history = [{"role": "user", "content": "word " * 40_000}, {"role": "assistant", "content": "yes"}]
    async with serving(engine, ws_max_message_bytes=1_000_000) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        sent = request({**BODY, "stream": True, "messages": [*history, *BODY["messages"]]})
        assert len(sent) > 3 * 65_536
        for start in range(0, len(sent), 60_000):
            writer.write(sent[start : start + 60_000])
            await writer.drain()
            await asyncio.sleep(0)
        await eventually(lambda: bool(engine.held))
        writer.close()
        await eventually(lambda: not engine.held and engine.aborts == 1)
        await eventually(lambda: running.service.admission.held == 0)
        del reader


class Peer:
    """A connection of the front whose other end is a list of what was written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.completed = 0
        transport = Mock(spec=asyncio.Transport)
        transport.write = self.written.append
        transport.is_closing.return_value = False
        self.transport = transport
        self.front = Mock(spec=HttpFront)
        self.front.configure_mock(
            asgi_version="3.0", server=None, client=None, scheme="http", app_state={}, transport=transport,
            flow=FlowControl(transport), logger=Mock(), access_logger=Mock(), server_state=ServerState(),
            on_response_complete=self.complete, conn=Mock(they_are_waiting_for_100_continue=False),
        )  # fmt: skip
        self.cycle: RequestResponseCycle = DirectCycle(self.front, read_head(whole([b"Host: a"]), BODIES))

    def complete(self) -> None:
        self.completed += 1

    async def run(self, *messages: dict[str, Any]) -> bytes:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            for message in messages:
                await send(message)

        await self.cycle.run_asgi(app)  # type: ignore[arg-type]
        return b"".join(self.written)


def start(*fields: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(fields)}


def piece(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


LENGTH = (b"content-length", b"2")


async def test_what_an_application_may_answer() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await Peer().run(start(), piece(b"ab", more=True), piece(b"")) == chunked + b"2\r\nab\r\n0\r\n\r\n"
    assert await Peer().run(start(), piece(b"", more=True), piece(b"a")) == chunked + b"1\r\na\r\n0\r\n\r\n"
    assert await Peer().run(start(), piece(b"")) == chunked + b"0\r\n\r\n"
    known = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
    assert await Peer().run(start(LENGTH), piece(b"a", more=True), piece(b"b")) == known + b"ab"
    assert await Peer().run(start(status=204), piece(b"")) == b"HTTP/1.1 204 No Content\r\n\r\n"
    last = Peer()
    assert b"connection: close" in await last.run(start(LENGTH, (b"connection", b"close")), piece(b"ab"))
    assert last.transport.close.called


@pytest.mark.parametrize(
    "messages",
    [
        [piece(b"a")],
        [start((b"x", b"a\r\nset-cookie: b"))],
        [start((b"x\r\n", b"a"))],
        [start((b"x", b"a\x00"))],
        [{"type": "http.response.debug"}],
        [],
    ],
)
async def test_an_answer_that_cannot_begin_is_a_500_and_the_last(messages: list[dict[str, Any]]) -> None:
    peer = Peer()
    assert (await peer.run(*messages)).startswith(b"HTTP/1.1 500 ")
    assert peer.transport.close.called


@pytest.mark.parametrize(
    "messages",
    [
        [start(LENGTH), piece(b"abc")],
        [start(LENGTH), piece(b"a")],
        [start(LENGTH), piece(b"ab", more=True), piece(b"c")],
        [start(), start()],
        [start(), piece(b"a", more=True)],
        [start()],
        [start(), piece(b"a", more=True), start()],
    ],
)
async def test_an_answer_that_goes_wrong_ends_the_connection_before_its_end(messages: list[dict[str, Any]]) -> None:
    peer = Peer()
    written = await peer.run(*messages)
    assert peer.transport.close.called
    assert peer.completed == 0
    assert not written.endswith(b"0\r\n\r\n")


async def test_nothing_is_sent_behind_the_end_of_an_answer() -> None:
    peer = Peer()
    whole_answer = await peer.run(start(LENGTH), piece(b"ab"), piece(b"c"))
    assert whole_answer.endswith(b"\r\n\r\nab")
    assert peer.completed == 1


async def test_whoever_wants_to_know_is_told_once_of_a_connection_that_ends() -> None:
    told: list[int] = []
    for lost_first in (False, True):
        peer = Peer()
        cycle = peer.cycle
        assert isinstance(cycle, DirectCycle)
        cycle.disconnected = lost_first
        cycle.when_lost(lambda: told.append(1))
        cycle.disconnected = True
        cycle.connection_lost()
        cycle.connection_lost()
    assert len(told) == 2
    forgotten = Peer().cycle
    assert isinstance(forgotten, DirectCycle)
    forgotten.when_lost(lambda: told.append(1))
    forgotten.forget()
    forgotten.disconnected = True
    forgotten.connection_lost()
    assert len(told) == 2
