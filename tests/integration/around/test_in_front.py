"""What stands around a runtime on a host, as `deploy/host/` has it: nginx and Caddy, with TLS; the systemd unit."""

from __future__ import annotations

import asyncio
import datetime
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import connect

from runtime import defaults
from runtime.deployment.settings import RuntimeSettings
from runtime.server.process import SHUTDOWN_TIMEOUT_S
from tests.harness.scripted import KEY, Client, ScriptedEngine, serving
from tests.harness.server import free_port

HOST = Path(__file__).parents[3] / "deploy/host"
NAME = "voice.example.com"
UPSTREAM = "127.0.0.1:8000"


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of `NAME` that it signed itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@dataclass
class Proxy:
    """A proxy that runs, and its log."""

    port: int
    trusted: ssl.SSLContext
    log: Path

    @asynccontextmanager
    async def client(self, query: str = "", **headers: str) -> AsyncIterator[Client]:
        """Connect as a client outside does, by wss."""
        url = f"wss://{NAME}:{self.port}/ws{query}"
        options = {"ssl": self.trusted, "host": "127.0.0.1", "server_hostname": NAME}
        async with connect(url, additional_headers=headers, **options) as socket:
            yield Client(socket)

    @asynccontextmanager
    async def https(self, key: str) -> AsyncIterator[httpx.AsyncClient]:
        """Connect as a client of HTTP outside does."""

        async def name(request: httpx.Request) -> None:
            request.extensions["sni_hostname"] = NAME

        async with httpx.AsyncClient(
            verify=self.trusted,
            trust_env=False,
            base_url=f"https://127.0.0.1:{self.port}",
            headers={"Host": NAME, "Authorization": f"Bearer {key}"},
            event_hooks={"request": [name]},
        ) as client:
            yield client

    async def status(self, path: str, key: str = "") -> int:
        """The status of a path; a key is shown in every header that may hold one."""
        shown = {"X-API-Key": key, "Authorization": f"Bearer {key}", "Referer": f"https://{NAME}/?api_key={key}"}
        async with httpx.AsyncClient(verify=self.trusted, trust_env=False) as client:
            request = client.build_request(
                "GET", f"https://127.0.0.1:{self.port}{path}", headers={"Host": NAME, **(shown if key else {})}
            )
            request.extensions["sni_hostname"] = NAME
            return (await client.send(request)).status_code


def nginx(folder: Path, port: int, upstream: int, paths: tuple[Path, Path]) -> list[str]:
    """Its configuration, with the places of this test, and the command."""
    text = (HOST / "nginx.conf").read_text("utf-8")
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        (UPSTREAM, f"127.0.0.1:{upstream}"),
        (f"/etc/ssl/certs/{NAME}.pem", str(paths[0])),
        (f"/etc/ssl/private/{NAME}.key", str(paths[1])),
        ("/var/log/nginx/yap.log", str(folder / "access.log")),
        ("/var/log/nginx/yap-error.log", str(folder / "error.log")),
    ):
        assert old in text
        text = text.replace(old, new)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder / kind};\n" for kind in kinds)
    place = folder / "nginx.conf"
    place.write_text(
        f"daemon off; pid {folder / 'pid'}; error_log {folder / 'start.log'};\n"
        f"events {{}}\nhttp {{\n{temporary}{text}\n}}\n"
    )
    return ["nginx", "-c", str(place), "-p", str(folder)]


def caddy(folder: Path, port: int, upstream: int, paths: tuple[Path, Path]) -> list[str]:
    """Its configuration, with the places of this test, and the command."""
    text = (HOST / "Caddyfile").read_text("utf-8")
    assert UPSTREAM in text
    assert f"{NAME} {{" in text
    text = text.replace(UPSTREAM, f"127.0.0.1:{upstream}").replace(
        f"{NAME} {{", f"{NAME}:{port} {{\n\ttls {paths[0]} {paths[1]}\n"
    )
    assert text.count("\n{\n") == 1
    text = text.replace("\n{\n", f"\n{{\n\tadmin off\n\tauto_https off\n\tstorage file_system {folder}\n")
    place = folder / "Caddyfile"
    place.write_text(text)
    return ["caddy", "run", "--config", str(place), "--adapter", "caddyfile"]


@asynccontextmanager
async def in_front(make: Callable[..., list[str]], folder: Path, upstream: int) -> AsyncIterator[Proxy]:
    """Run a proxy before a server's port."""
    port, paths = free_port(), certificate(folder)
    command = make(folder, port, upstream, paths)
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here: install Debian's `{command[0]}`")
    with (folder / "output.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)  # noqa: ASYNC220 - it starts at once
    proxy = Proxy(port, ssl.create_default_context(cafile=str(paths[0])), folder / "access.log")
    try:
        for _ in range(600):
            try:
                await proxy.status("/healthz")
                break
            except httpx.TransportError:
                assert process.poll() is None, (folder / "output.log").read_text()
                await asyncio.sleep(0.05)
        yield proxy
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)


@pytest.mark.parametrize("make", [nginx, caddy])
async def test_a_conversation_by_wss(make: Callable[..., list[str]], tmp_path: Path) -> None:
    """A turn, a barge-in's cancel and a close code come through; what is inside stays inside; no key is logged."""
    engine = ScriptedEngine()
    async with serving(engine, ws_idle_timeout_s=0.5) as running, in_front(make, tmp_path, running.port) as proxy:
        async with proxy.client(**{"X-API-Key": KEY}) as client:
            frames = await client.turn(user_utterance="hello")
            assert [frame["text"] for frame in frames if frame["type"] == "token"] == [
                "Sure",
                " thing",
                ", here",
                " it is.",
            ]
            engine.reply, engine.pause = ["word "] * 200, 0.05
            await client.send(type="start", session_id="s1", user_utterance="go on")
            await client.until("token")
            await client.send(type="cancel")
            assert (await client.until("done"))[-1]["cancelled"]
            await asyncio.wait_for(client.socket.wait_closed(), 30)
            assert client.socket.close_code == defaults.IDLE_CLOSE_CODE
        async with proxy.client(f"?api_key={KEY}") as client:
            await client.send(type="ping")
            assert (await client.receive())["type"] == "pong"
        async with proxy.client("?api_key=wrong-secret") as client:
            assert (await client.receive())["error_code"] == "authentication_failed"
        async with proxy.client("?API_KEY=wrong-secret") as client:
            assert (await client.receive())["error_code"] == "authentication_failed"
        assert [await proxy.status(path) for path in ("/healthz", "/readyz", "/metrics", "/", "/ws/..%2fmetrics")] == [
            200,
            200,
            404,
            404,
            404,
        ]
    written = logs(tmp_path)
    assert "/ws" in written
    assert KEY not in written
    assert "wrong-secret" not in written


@pytest.mark.parametrize("make", [nginx, caddy])
async def test_openais_clients_by_https(make: Callable[..., list[str]], tmp_path: Path) -> None:
    """Each piece of a stream comes through at once, and so does the client's hanging up; no key is logged."""
    engine = ScriptedEngine()
    body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "hello"}]}

    async with (
        serving(engine) as running,
        in_front(make, tmp_path, running.port) as proxy,
        proxy.https(KEY) as client,
    ):
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "chat"
        whole = await client.post("/v1/chat/completions", json={**body, "stream": False})
        assert whole.json()["choices"][0]["message"]["content"] == "Sure thing, here it is."
        large = await client.post("/v1/chat/completions", json={**body, "user": "x" * 300_000})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
        engine.reply, engine.pause = ["Sure", *[" thing"] * 1000], 0.05
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            assert "role" in await lines.__anext__()
            assert engine.held
        for _ in range(1000):
            if not engine.held:
                break
            await asyncio.sleep(0.01)
        assert (engine.aborts, len(engine.held)) == (1, 0)
    written = logs(tmp_path)
    assert "/v1/chat/completions" in written
    assert KEY not in written


@pytest.mark.parametrize("make", [nginx, caddy])
@pytest.mark.parametrize("query", [f"api_key={KEY}", f"API_KEY={KEY}", f"api%5Fkey={KEY}", f"x=%zz&api_key={KEY}"])
async def test_no_key_is_logged_while_the_server_does_not_answer(
    make: Callable[..., list[str]], query: str, tmp_path: Path
) -> None:
    """While it starts again its clients knock, and a proxy writes of each that nobody was there."""
    async with in_front(make, tmp_path, free_port()) as proxy:
        assert await proxy.status(f"/ws?{query}", KEY) == 502
    written = logs(tmp_path)
    assert "/ws" in written
    assert KEY not in written


def logs(folder: Path) -> str:
    """All that a proxy wrote."""
    return "".join(path.read_text(errors="replace") for path in folder.glob("*.log"))


def unit() -> dict[str, list[str]]:
    """The systemd unit's entries."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", (HOST / "yap-runtime.service").read_text("utf-8"), re.M):
        found.setdefault(name, []).append(value)
    return found


def test_the_unit_agrees_with_the_program() -> None:
    entries = unit()
    settings = {name.upper() for name in RuntimeSettings.model_fields}
    variables = {entry.partition("=")[0] for entry in entries["Environment"]}
    assert variables - {"HOME", "XDG_CACHE_HOME"} <= settings
    assert (
        int(entries["TimeoutStopSec"][0]) > RuntimeSettings.model_fields["drain_timeout_s"].default + SHUTDOWN_TIMEOUT_S
    )
    assert entries["RestartPreventExitStatus"] == ["64 65"]
    page = (HOST.parents[1] / "docs/operations.md").read_text("utf-8")
    for status in ("64", "65", "143"):
        assert re.search(rf"^\| {status} \|", page, re.M)


def test_systemd_reads_the_unit() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    command = ["systemd-analyze", "verify", str(HOST / "yap-runtime.service")]
    answer = subprocess.run(command, capture_output=True, text=True)
    # Where it is checked the program is not installed, and nothing else may be said.
    told = [line for line in answer.stderr.splitlines() if "yap-runtime.service" in line]
    assert all("is not executable" in line for line in told), told


def test_the_log_filter_of_caddy_names_the_servers_own_ways_to_show_a_key() -> None:
    text = (HOST / "Caddyfile").read_text("utf-8")
    assert "request>uri regexp" in text
    assert "X-Api-Key delete" in text
    assert UPSTREAM.split(":")[1] == str(defaults.PORT)
