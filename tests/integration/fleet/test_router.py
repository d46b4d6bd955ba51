"""The router of `deploy/compose/`, run for real: who comes to whom, and what a listener notices of changes."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from urllib.parse import quote, quote_plus

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus

from runtime import defaults
from tests.harness.fleet.haproxy import INSTALLED, HAProxy
from tests.harness.fleet.router import samples
from tests.harness.fleet.rows import reproduces
from tests.harness.fleet.servers import SLOTS, fleet, name_of
from tests.harness.scripted import KEY
from tests.harness.server import free_port

# The bound of haproxy.cfg, docs/scaling.md tells of it.
BOUND = 1.02

pytestmark = pytest.mark.skipif(not INSTALLED, reason="no haproxy here: install Debian's `haproxy`")


async def test_a_session_key_comes_to_the_same_server_by_whichever_way_it_is_named() -> None:
    async with fleet() as three:
        of_key = {}
        for number in range(12):
            key = f"sess ion/{number}"
            escaped = key.replace(" ", "%20").replace("/", "%2F")
            of_key[key] = await three.asked(key)
            assert await three.asked(query=f"?api_key={KEY}&session={escaped}") == of_key[key]
            assert await three.asked(Cookie=f"a=b; yap_session={escaped}") == of_key[key]
            assert await three.asked(escaped) == of_key[key]
        assert len(set(of_key.values())) == 3, "twelve keys and three servers"
        one = next(key for key, name in of_key.items() if name == "server 0")
        two = next(key for key, name in of_key.items() if name == "server 1")
        query, cookie = f"?session={two.replace(' ', '%20').replace('/', '%2F')}", "yap_session=sess%20ion%2F0"
        assert await three.asked(one, query, Cookie=cookie) == "server 0", "the header before the query"
        assert await three.asked(query=query, Cookie=cookie) == "server 1", "the query before the cookie"


# Whether the client's library writes each letter of a header as one byte, as since 17.0; before, there is no way to
# send a key's bytes as they are.
WRITES_BYTES = Headers(x="é").serialize() == "x: é\r\n\r\n".encode("latin-1")


async def test_any_letters_of_a_session_key_lead_to_one_server() -> None:
    keys = ["50% off", "100%", "%zz", "a+b c", "one,two", "x, y", "löwe/🦁", "a;b&c=d", '"', "~" * 256]
    servers = set()
    async with fleet() as three:
        for key in keys:
            sent = key.encode().decode("latin-1")  # a header's bytes, as they are
            escaped, form = quote(key, safe=""), quote_plus(key)
            ways: list[tuple[str | None, str, dict[str, str]]] = []
            if key.isascii() or WRITES_BYTES:
                ways += [(sent, "", {}), (sent, "", {})]
            ways += [(None, f"?session={one}", {}) for one in (escaped, form)]
            ways += [(None, "", {"Cookie": f"yap_session={escaped}"})]
            if "%" not in key:
                ways += [(escaped, "", {})]
            names = {await three.asked(way, query, **headers) for way, query, headers in ways}
            assert len(names) == 1, key
            servers |= names
        assert len(servers) == 3
        others = {await three.asked(f"{number},the same") for number in range(12)}
        assert len(others) > 1, "what stands before a comma counts too"


@pytest.mark.parametrize("key", [lambda number: f"key-{number}", lambda number: "the same", lambda number: None])
async def test_no_server_has_more_than_its_share_whatever_the_keys(
    key: Callable[[int], str | None],
) -> None:
    """So no server is full before 0.98 of all slots are held."""
    total = int(3 * SLOTS / BOUND) - 1
    async with fleet() as three, AsyncExitStack() as stack:
        for number in range(total):
            await stack.enter_async_context(three.client(key(number)))
        assert sum(three.held()) == total
        assert max(three.held()) <= math.ceil(BOUND * (total + 1) / 3) <= SLOTS


@reproduces("a drain (SIGTERM)")
async def test_a_drain_moves_the_listeners_of_one_server_and_the_rest_notice_nothing() -> None:
    async with fleet() as three:
        keys = [f"k{number}" for number in range(9)]
        before = {key: await three.asked(key) for key in keys}
        leaving = three.servers[0]
        mine = next(key for key, name in before.items() if name == "server 0")
        other = next(key for key, name in before.items() if name == "server 1")
        leaving.engine.gate = asyncio.Event()
        async with three.client(mine) as speaking, three.client(other) as undisturbed:
            await speaking.send(type="start", session_id="s", user_utterance="hello")
            await speaking.until("ack")
            leaving.service.drain()
            assert (await speaking.receive())["type"] == "draining"
            await three.up(1, 2)
            after = {key: await three.asked(key) for key in keys}
            assert "server 0" not in after.values()
            assert {key: name for key, name in after.items() if before[key] != "server 0"} == {
                key: name for key, name in before.items() if name != "server 0"
            }, "a key whose server stays does not move"
            leaving.engine.gate.set()
            assert (await speaking.until("done"))[-1]["usage"]["finish_reason"] == "stop"
            await asyncio.wait_for(speaking.socket.wait_closed(), 30)
            assert speaking.socket.close_code == 1001
            assert await name_of(undisturbed) == "server 1"


@reproduces("the router is reloaded")
async def test_a_reload_cuts_nobody_and_a_new_server_gets_its_share() -> None:
    async with fleet(2, spare=1) as three:
        keys = [f"k{number}" for number in range(24)]
        before = {key: await three.asked(key) for key in keys}
        slow = three.servers[0].engine
        slow.gate = asyncio.Event()
        mine = next(key for key, name in before.items() if name == "server 0")
        async with three.client(mine) as speaking, three.client(keys[0]) as silent:
            await speaking.send(type="start", session_id="s", user_utterance="hello")
            await speaking.until("ack")
            three.router.servers.append(three.servers[2].port)
            three.router.reload()
            await three.up(0, 1, 2)
            slow.gate.set()
            assert (await speaking.until("done"))[-1]["usage"]["finish_reason"] == "stop"
            await silent.send(type="ping")
            assert (await silent.receive())["type"] == "pong"
            after = {key: await three.asked(key) for key in keys}
            moved = Counter(after[key] for key in keys if after[key] != before[key])
            assert set(moved) == {"server 2"}, "keys move to the new server alone"


async def test_a_server_that_does_not_take_connections_is_passed_over_before_a_check_has_noticed() -> None:
    async with fleet(1, spare=1) as two:
        dead = free_port()
        two.router.servers = [dead, two.servers[0].port]
        # As if the first had been up a moment ago: no check says anything before the clients come.
        two.router.changes = [("check inter 500ms fastinter 100ms downinter 500ms", "check inter 60s")]
        two.router.reload()
        for _ in range(100):
            if "DOWN" not in two.router.get("/metrics", inside=True)[1]:
                break
            await asyncio.sleep(0.05)
        assert {await two.asked(f"k{number}") for number in range(8)} == {"server 0"}


@reproduces("all servers are full")
async def test_close_codes_come_through() -> None:
    async with fleet(1, max_concurrent_connections=1) as one, one.client("a"), one.client("b") as late:
        assert (await late.receive())["error_code"] == "server_at_capacity"
        await asyncio.wait_for(late.socket.wait_closed(), 30)
        assert late.socket.close_code == 1013


async def test_idle_sockets_are_the_servers_to_close() -> None:
    async with fleet(1, ws_idle_timeout_s=0.5) as one, one.client("a") as silent:
        await asyncio.wait_for(silent.socket.wait_closed(), 30)
        assert silent.socket.close_code == defaults.IDLE_CLOSE_CODE


async def test_what_is_inside_stays_inside() -> None:
    async with fleet(1) as one:
        router = one.router
        found = {
            path: (await asyncio.to_thread(router.get, path))[0]
            for path in (
                "/healthz",
                "/readyz",
                "/ws",
                "/v1/models",
                "/metrics",
                "/",
                "/drain",
                "/ws/..%2fmetrics",
                "/METRICS",
                "//metrics",
            )
        }
        assert found == {"/healthz": 200, "/readyz": 200, "/ws": 426, "/v1/models": 401} | dict.fromkeys(
            list(found)[4:], 404
        )
        assert "slots" not in router.get("/readyz")[1]
        up = samples(router.get("/metrics", inside=True)[1], "haproxy_backend_active_servers")
        assert up['proxy="runtimes"'] == 1


async def test_the_log_names_paths_and_servers_and_no_keys() -> None:
    async with fleet(1) as one:
        await one.asked("secret-3", f"?api_key={KEY}&session=secret-2", Cookie="yap_session=secret-4")
        text = ""
        for _ in range(200):
            text = one.router.log.read_text()
            if '"status":101' in text:
                break
            await asyncio.sleep(0.05)
    (told,) = [json.loads(line) for line in text.splitlines() if '"status":101' in line]
    assert (told["path"], told["server"], told["client"]) == ("/ws", "runtime-0", "127.0.0.1")
    assert "secret" not in text
    assert KEY not in text


@reproduces("no server is ready")
async def test_nobody_is_ready() -> None:
    async with fleet(1) as one:
        one.servers[0].service.drain()
        for _ in range(200):
            if (await asyncio.to_thread(one.router.status, "/readyz")) == 503:
                break
            await asyncio.sleep(0.05)
        with pytest.raises(InvalidStatus) as refused:
            await one.asked("a")
        assert refused.value.response.status_code == 503


async def test_the_address_that_a_client_writes_into_a_header_goes() -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    with HAProxy([server.sockets[0].getsockname()[1]]) as router:
        await asyncio.to_thread(router.wait_up)
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(b"GET /ws HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\n\r\n")
        await reader.readline()
        writer.close()
    server.close()
    (head,) = [head.lower() for head in heads if head.startswith(b"GET /ws")]
    assert head.count(b"x-forwarded-for") == 1
    assert b"x-forwarded-for: 127.0.0.1\r\n" in head
