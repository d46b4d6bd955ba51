"""WebSockets whose peers do not behave: frames that are no messages, peers that do not read, ends that do not end."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from runtime import defaults
from runtime.server.front import sockets as sockets_module
from runtime.server.front import websocket as front
from runtime.server.front.throttle import STEP_S, LoopThrottle
from runtime.server.front.websocket import FRAMES, SLICE_BYTES, WebSocketFront
from tests.attack import raw
from tests.harness.scripted import KEY, Running, serving
from tests.harness.waiting import all_gone, eventually


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a peer has 5 s for, it has 0.3 s for."""
    monkeypatch.setattr(sockets_module, "CLOSE_DEADLINE_S", 0.3)
    monkeypatch.setattr(sockets_module, "SWEEP_S", 0.05)
    monkeypatch.setattr(front, "CLOSE_DEADLINE_S", 0.3)
    monkeypatch.setattr("runtime.server.connection.CLOSE_DEADLINE_S", 0.3)


def open_websocket(running: Running, key: str = KEY, receive_buffer: int | None = None) -> Any:
    return asyncio.to_thread(raw.websocket, running.port, key, receive_buffer=receive_buffer)


FLOODS = {
    "pings": raw.frame(raw.PING, b"p" * 125),
    "empty pings": raw.frame(raw.PING),
    "pongs": raw.frame(raw.PONG),
    "fragments": raw.frame(raw.CONTINUATION, final=False),
    "fragments of one byte": raw.frame(raw.CONTINUATION, b" ", final=False),
    "messages in two pieces": raw.frame(raw.TEXT, final=False) + raw.frame(raw.CONTINUATION),
    "binary in two pieces": raw.frame(raw.BINARY, final=False) + raw.frame(raw.CONTINUATION),
}


@pytest.mark.parametrize("key", [KEY, "wrong"], ids=["with a key", "refused"])
@pytest.mark.parametrize("kind", FLOODS)
@pytest.mark.parametrize("reads", [True, False], ids=["reads", "does not read"])
async def test_frames_that_are_no_messages_have_an_end(kind: str, key: str, reads: bool) -> None:
    async with serving(ws_max_messages_per_window=0, ws_idle_timeout_s=1000) as running, running.client() as other:
        connection = await open_websocket(running, key, 4096)
        with closing(connection):
            begin = raw.frame(raw.TEXT, final=False) if kind.startswith("fragments") else b""
            assert await asyncio.to_thread(raw.flood, connection, begin + FLOODS[kind] * 10_000, 100)
            if reads:
                await asyncio.to_thread(raw.to_the_end, connection)
        await eventually(lambda: running.service.admission.held == 1)
        await other.send(type="ping")
        assert (await other.receive())["type"] == "pong"
        if key == KEY:
            assert b'yap_sockets_dropped_total{reason="flood"} 1.0' in running.service.metrics.render()


async def test_a_flood_is_told_why(short_deadline: None) -> None:
    async with serving() as running, running.client() as client:
        for _ in range(FRAMES + 1):
            await client.socket.ping()
        await asyncio.wait_for(client.socket.wait_closed(), 10)
        assert (client.socket.close_code, client.socket.close_reason) == (
            1008,
            "too many frames that are no messages",
        )
        await all_gone(running)


async def test_pings_at_a_person_s_pace_are_answered_and_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "FRAME_WINDOW_S", 0.05)
    monkeypatch.setattr(front, "FRAMES", 10)
    async with serving() as running, running.client() as client:
        for _ in range(30):
            await asyncio.wait_for(await client.socket.ping(), 5)
            await asyncio.sleep(0.01)
        await client.send(type="ping")
        assert (await client.receive())["type"] == "pong"


@pytest.mark.parametrize("piece", [defaults.MESSAGE_BYTES, 1024, 512])
async def test_the_largest_message_comes_through_whole_or_in_pieces(piece: int) -> None:
    async with serving() as running, running.client() as client:
        text = json.dumps({"type": "ping", "request_id": "r", "more": ""})
        text = text.replace('""', f'"{"é" * ((defaults.MESSAGE_BYTES - len(text)) // 2)}"')
        data = text.encode()
        await client.socket.send(data[at : at + piece].decode("utf-8", "ignore") for at in range(0, len(data), piece))
        frame = await client.receive()
        # Cut in the middle of a letter, the letter is gone: only the way here counts.
        assert (frame["type"], frame["request_id"]) == ("pong", "r")


async def test_one_byte_more_is_too_big() -> None:
    async with serving() as running, running.client() as client:
        await client.socket.send("a" * (defaults.MESSAGE_BYTES + 1))
        await asyncio.wait_for(client.socket.wait_closed(), 10)
        assert client.socket.close_code == 1009


async def test_a_long_run_of_messages_comes_in_order_and_lets_others_in_between() -> None:
    async with serving() as running, running.client() as other:
        connection = await open_websocket(running)
        with closing(connection):
            count = 5000
            run = b"".join(
                raw.frame(raw.TEXT, json.dumps({"type": "ping", "request_id": n}).encode()) for n in range(count)
            )
            sending = asyncio.create_task(asyncio.to_thread(connection.sendall, run))
            for _ in range(5):
                await other.send(type="ping")
                assert (await other.receive())["type"] == "pong"
            found = await asyncio.to_thread(pongs, connection, count)
            await sending
        assert found == list(range(count))


def pongs(connection: socket.socket, count: int) -> list[int]:
    """Ids of so many `pong` frames, each of them short."""
    data, ids = b"", []
    while len(ids) < count:
        data += connection.recv(65_536)
        while len(data) >= 2 and len(data) >= 2 + data[1]:
            ids.append(json.loads(data[2 : 2 + data[1]])["request_id"])
            data = data[2 + data[1] :]
    return ids


PINGS = raw.frame(raw.TEXT, json.dumps({"type": "ping", "request_id": "x" * 256}).encode()) * 100


async def fill(running: Running, connection: socket.socket) -> None:
    """Send pings and read no answers until the server reads no more."""
    connection.settimeout(0.5)
    await asyncio.to_thread(raw.flood, connection, PINGS, 2000)


@pytest.mark.usefixtures("short_deadline")
async def test_an_idle_client_that_does_not_read_is_gone_after_the_deadline() -> None:
    async with serving(ws_idle_timeout_s=0.5) as running:
        connections = [await open_websocket(running, receive_buffer=4096) for _ in range(3)]
        for connection in connections:
            await fill(running, connection)
        await all_gone(running)
        assert running.service.admission.held == 0
        for connection in connections:
            connection.close()


@pytest.mark.usefixtures("short_deadline")
@pytest.mark.parametrize("key", ["wrong", KEY])
async def test_a_refused_client_that_stays_is_gone_after_the_deadline(key: str) -> None:
    async with serving(max_concurrent_connections=1, ws_handshake_acquire_timeout_s=0) as running, running.client():
        connections = [await open_websocket(running, key) for _ in range(5)]
        await all_gone(running, but=1)
        assert running.service.admission.held == 1
        for connection in connections:
            connection.close()


@pytest.mark.usefixtures("short_deadline")
@pytest.mark.parametrize(
    "last",
    [
        raw.frame(raw.TEXT, b'{"type":"end"}'),
        raw.frame(raw.TEXT, b"\xff"),
        b"\xff\xff\xff\xff",
        raw.frame(raw.TEXT, b"a" * (defaults.MESSAGE_BYTES + 1)),
        raw.frame(raw.CLOSE, b"\x03\xe8"),
        raw.frame(raw.CLOSE, b"\x00"),
        raw.frame(raw.CONTINUATION),
    ],
    ids=["end", "no text", "no frame", "too big", "close", "bad close", "no beginning"],
)
async def test_every_way_to_an_end_ends_though_nobody_reads(last: bytes) -> None:
    async with serving(ws_idle_timeout_s=1000) as running:
        connection = await open_websocket(running, receive_buffer=4096)
        connection.sendall(PINGS + last)
        await all_gone(running)
        assert running.service.admission.held == 0
        connection.close()


async def test_a_drain_ends_though_nobody_reads(short_deadline: None) -> None:
    async with serving(ws_idle_timeout_s=1000) as running:
        connection = await open_websocket(running, receive_buffer=4096)
        await fill(running, connection)
        running.service.drain()
        await all_gone(running)
        connection.close()


async def test_what_waits_for_a_peer_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    fronts: list[WebSocketFront] = []
    take_over = WebSocketFront.take_over

    def noted(self: WebSocketFront, *arguments: Any) -> None:
        fronts.append(self)
        take_over(self, *arguments)

    monkeypatch.setattr(WebSocketFront, "take_over", noted)
    async with serving(ws_idle_timeout_s=1000, ws_max_messages_per_window=0) as running:
        connection = await open_websocket(running, receive_buffer=4096)
        await fill(running, connection)
        (peer,) = fronts
        waiting = sum(len(str(message)) for message in peer.queue._queue)  # type: ignore[attr-defined]
        assert peer.transport.get_write_buffer_size() <= 256 * 1024
        assert waiting <= 4 * SLICE_BYTES
        assert len(peer._rest) <= 512 * 1024
        connection.close()
        await all_gone(running)


async def test_a_throttle_stops_when_a_step_took_long() -> None:
    now, let_in = 0.0, []

    def slow() -> None:
        nonlocal now
        now += 0.7 * STEP_S
        let_in.append(now)

    throttle = LoopThrottle(100, lambda: now)
    for _ in range(6):
        throttle.enter(slow)
    seen = []
    while len(throttle):
        await asyncio.sleep(0)
        seen.append(len(let_in))
    assert seen == [2, 4, 6]


async def test_a_throttle_lets_through_a_few_at_a_time_in_order() -> None:
    throttle, let_in = LoopThrottle(2, lambda: 0.0), []

    def step(number: int) -> None:
        let_in.append(number)
        if number == 3:
            raise ValueError("one that fails keeps nobody out")

    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    for number in range(7):
        throttle.enter(lambda number=number: step(number))  # type: ignore[misc]
    assert let_in == []
    seen = []
    while len(throttle):
        await asyncio.sleep(0)
        seen.append(len(let_in))
    assert let_in == list(range(7))
    assert seen == [2, 4, 6, 7]
    assert len(raised) == 1


async def test_a_throttle_lets_one_pass_in_each_step_where_nobody_waits() -> None:
    throttle = LoopThrottle(2)
    assert [throttle.passes() for _ in range(3)] == [True, False, False]
    await asyncio.sleep(0)
    assert throttle.passes()
    let_in: list[int] = []
    for number in range(3):
        throttle.enter(lambda number=number: let_in.append(number))  # type: ignore[misc]
    await asyncio.sleep(0)
    assert let_in == [0, 1]
    assert not throttle.passes()  # one waits still
    await asyncio.sleep(0)
    assert let_in == [0, 1, 2]
    assert throttle.passes()


FRAME = st.builds(
    raw.frame,
    st.sampled_from([raw.TEXT, raw.BINARY, raw.CONTINUATION, raw.CLOSE, raw.PING, raw.PONG, 3, 11]),
    st.one_of(
        st.binary(max_size=130),
        st.sampled_from([b'{"type":"ping"}', b'{"type":"end"}', b"__CANCEL__", b"\x03\xe8bye", b"a" * 5000]),
    ),
    final=st.booleans(),
)


# A message that is no text, and in the same piece the peer's close frame.
NO_TEXT_AND_BYE = raw.frame(raw.TEXT, b"\x0f^}\xf9") + raw.frame(raw.CLOSE, b"\x03\xe8bye")


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([(KEY, NO_TEXT_AND_BYE, False)])
@example([(KEY, NO_TEXT_AND_BYE + raw.frame(raw.TEXT, b"{}"), True)])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([KEY, "wrong"]),
            st.lists(st.one_of(FRAME, st.binary(max_size=20)), max_size=20).map(b"".join),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_frames_make_the_server_deaf_or_keep_a_slot(clients: list[tuple[str, bytes, bool]]) -> None:
    async def run() -> None:
        async with serving(ws_max_messages_per_window=0) as running, running.client() as other:
            writers = []
            for key, data, waits in clients:
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                writer.write(raw.handshake(key))
                if waits:
                    await reader.readuntil(b"\r\n\r\n")
                writer.write(data)
                writers.append(writer)
            await other.send(type="ping")
            assert (await other.receive())["type"] == "pong"
            for writer in writers:
                writer.transport.abort()
            await all_gone(running, but=1)
            assert running.service.admission.held == 1

    asyncio.run(run())


async def test_frames_that_are_there_together_go_to_the_socket_together(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []
    hold = WebSocketFront._hold

    async def noted(self: WebSocketFront, message: Any) -> None:
        before = len(self.conn.writes)
        await hold(self, message)
        assert len(self.conn.writes) == before + 1  # it waits there, and nothing was written
        held.append(json.loads(message["text"])["type"])

    monkeypatch.setattr(WebSocketFront, "_hold", noted)
    async with serving() as running, running.client() as client:
        for _ in range(3):
            kinds = [frame["type"] for frame in await client.turn()]
            assert kinds[0] == "ack"
            assert kinds[-2:] == ["final", "done"]
    assert "final" in held
    assert "done" not in held
