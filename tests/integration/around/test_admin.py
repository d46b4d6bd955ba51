"""The admin port: who may have the server leave, and that it then leaves as after SIGTERM."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from websockets.sync.client import connect

from runtime.deployment.settings import SettingsError, is_loopback, load
from runtime.server import process
from runtime.server.admin import create_admin_app
from runtime.server.service import Phase
from tests.harness.scripted import serving
from tests.harness.server import Server, free_port
from tests.harness.waiting import eventually


@pytest.mark.parametrize("token", [None, "geheim"])
@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/drain", {"Authorization": "Bearer geheim"}, 202),
        ("POST", "/drain", {"Authorization": "bearer geheim", "Content-Type": "text/plain"}, 202),
        ("POST", "/drain", {"Authorization": "Bearer geheim", "Origin": "http://127.0.0.1"}, 403),
        ("GET", "/drain", {"Authorization": "Bearer geheim"}, 405),
        ("POST", "/", {"Authorization": "Bearer geheim"}, 404),
        ("POST", "/drain", {"Authorization": "Bearer geheim2"}, None),
        ("POST", "/drain", {"Authorization": "Basic geheim"}, None),
        ("POST", "/drain", {}, None),
    ],
)
async def test_who_may_have_the_server_leave(
    token: str | None, method: str, path: str, headers: dict[str, str], status: int | None
) -> None:
    called = []
    app = create_admin_app(lambda: called.append(1) or {"status": "draining"}, SecretStr(token) if token else None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin") as client:
        answer = await client.request(method, path, headers=headers)
    expected = status if status is not None else 401 if token else 202
    assert answer.status_code == expected
    assert len(called) == (expected == 202)
    assert "geheim" not in answer.text


@pytest.mark.parametrize(
    ("hosts", "own"),
    [
        (("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"), True),
        (("0.0.0.0", "::", "10.0.0.1", "localhost.example", ""), False),  # noqa: S104
    ],
)
def test_which_addresses_are_this_machines_own(hosts: tuple[str, ...], own: bool) -> None:
    assert {is_loopback(host) for host in hosts} == {own}


def test_beyond_this_machine_it_wants_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"ARTIFACT": "x", "TEXT_API_KEY": "k", "ADMIN_PORT": "8001", "ADMIN_HOST": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="ADMIN_HOST: expected"):
        load()
    token = tmp_path / "token"
    monkeypatch.setenv("ADMIN_TOKEN_FILE", str(token))
    for content in (None, b"", b"\n", b"a\nb\n"):
        if content is not None:
            token.write_bytes(content)
        with pytest.raises(SettingsError, match="ADMIN_TOKEN_FILE: expected"):
            load()
    token.write_bytes(b"geheim\n")
    found = load().admin_token()
    assert found is not None
    assert found.get_secret_value() == "geheim"
    monkeypatch.setenv("ADMIN_PORT", "8000")
    with pytest.raises(SettingsError, match="ADMIN_PORT: expected another port than PORT"):
        load()


@contextmanager
def scripted(**variables: str) -> Iterator[tuple[Server, str]]:
    port = free_port()
    server = Server(Path(), module="tests.harness.scripted_process", ADMIN_PORT=str(port), **variables)
    with server:
        server.wait_ready()
        yield server, f"http://127.0.0.1:{port}/drain"


def post(url: str) -> tuple[int, dict[str, object]]:
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=10) as answer:
        return answer.status, json.loads(answer.read())


def test_a_post_drains_as_sigterm_does_and_a_second_one_changes_nothing() -> None:
    with scripted(SCRIPT_REPLY_SECONDS="2") as (server, url):
        headers = {"X-API-Key": server.api_key}
        door = partial(connect, server.url, additional_headers=headers)
        with door() as idle, door() as busy:
            busy.send(json.dumps({"type": "start", "session_id": "s", "user_utterance": "hi"}))
            assert json.loads(busy.recv(10))["type"] == "ack"
            status, body = post(url)
            assert (status, body["status"]) == (202, "draining")
            assert json.loads(idle.recv(10)) == {"type": "draining", "deadline_s": 25, "reconnect": True}
            status, body = post(url)
            assert (status, body["status"]) == (202, "draining")
            kinds = []
            while not kinds or kinds[-1] != "done":
                kinds.append(json.loads(busy.recv(10))["type"])
            assert {"draining", "final", "done"} <= set(kinds)
            for socket in (idle, busy):
                with pytest.raises(Exception, match="1001"):
                    socket.recv(10)
        assert server.process is not None
        assert server.process.wait(20) == 0


async def test_posts_while_it_loads_are_one_wish_also_where_it_is_ready_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exits: list[int] = []
    monkeypatch.setattr(process, "exit_now", exits.append)
    monkeypatch.setattr(process, "ANSWER_S", 0.0)
    async with serving() as running:
        service = running.service
        service.phase = Phase.LOADING
        for _ in range(3):
            assert process.leave(service) == {"status": "loading", "deadline_s": 0, "connections": 0}
        service.phase = Phase.READY
        assert process.leave(service)["status"] == "draining"
        await asyncio.sleep(0.05)
        assert exits == [], "a second wish is no second signal"
        service.phase = Phase.LOADING
        process.leave(service)
        await eventually(lambda: exits == [0])
        service.phase = Phase.DRAINING
