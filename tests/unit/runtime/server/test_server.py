"""The process as a supervisor sees it: exit status, what it says, and how it leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from runtime.engines import EngineVersionError
from runtime.server import process
from tests.harness.server import free_port

GOLDEN = Path(__file__).resolve().parents[3] / "data" / "artifacts"


def environment(folder: Path, **variables: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    own = {"TEXT_API_KEY": "test-key", "HOST": "127.0.0.1", "LOG_DIR": str(folder), "PORT": str(free_port())}
    return {**kept, **own, **variables}


def refusal(folder: Path, **variables: str) -> tuple[int, list[str]]:
    """Exit status and the lines on standard error."""
    result = subprocess.run(
        [sys.executable, "-m", "runtime"],
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.returncode, result.stderr.splitlines()


def test_wrong_settings_are_told_at_once_and_exit_64(tmp_path: Path) -> None:
    status, lines = refusal(tmp_path, ARTIFACT="x", TEXT_API_KEY="", PORT="99999", INFERENCE_ENGINE="gguf")
    assert status == 64
    assert [line.split(": ")[1] for line in lines] == ["INFERENCE_ENGINE", "PORT", "TEXT_API_KEY"]
    status, lines = refusal(tmp_path, ARTIFACT="x", TEXT_API_KEY="")
    assert status == 64
    assert len(lines) == 1
    assert "TEXT_API_KEY" in lines[0]


def test_settings_that_do_not_fit_the_artifact_exit_64(tmp_path: Path) -> None:
    status, lines = refusal(tmp_path, ARTIFACT=str(GOLDEN / "tool-only"), DEPLOY_MODE="both")
    assert (status, len(lines)) == (64, 1)
    assert "DEPLOY_MODE: expected tool" in lines[0]


def test_a_taken_port_exits_69(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        status, lines = refusal(tmp_path, ARTIFACT="x", PORT=str(other.getsockname()[1]))
    assert (status, len(lines)) == (69, 1)
    assert "PORT: expected a free port" in lines[0]


def test_an_artifact_that_is_missing_tampered_with_or_foreign_exits_65(tmp_path: Path) -> None:
    status, lines = refusal(tmp_path, ARTIFACT=str(tmp_path / "nowhere"))
    assert (status, len(lines)) == (65, 1)
    assert "expected an artifact" in lines[0]
    tampered = tmp_path / "artifact"
    shutil.copytree(GOLDEN / "tool-only", tampered)
    victim = next(path for path in tampered.rglob("*") if path.is_file() and path.name == "config.json")
    victim.write_bytes(victim.read_bytes() + b" ")
    status, lines = refusal(tmp_path, ARTIFACT=str(tampered))
    assert (status, len(lines)) == (65, 1)
    assert "config.json: expected" in lines[0]
    status, lines = refusal(tmp_path, ARTIFACT=str(GOLDEN / "vllm-fp8"))
    assert (status, len(lines)) == (65, 1)
    assert "expected GPU architecture sm90" in lines[0]


@contextmanager
def scripted(folder: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process around a scripted engine, ready, and its URL."""
    env = environment(folder, ARTIFACT="x", **variables)
    url = f"ws://127.0.0.1:{env['PORT']}/ws"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.harness.scripted_process"],
        env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        yield process, url
    finally:
        process.kill()
        process.communicate()


@contextmanager
def client(url: str) -> Iterator[ClientConnection]:
    """Connected, as soon as the server is ready."""
    ready = url.replace("ws://", "http://").replace("/ws", "/readyz")
    for _ in range(400):
        try:
            if httpx.get(ready).status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.05)
    else:
        raise AssertionError("the server did not become ready within 20 s")
    with connect(url, additional_headers={"X-API-Key": "test-key"}) as socket:
        yield socket


def frames(socket: ClientConnection) -> list[str]:
    """What still comes, until the socket is closed."""
    found = []
    try:
        while True:
            found.append(str(socket.recv(timeout=10)))
    except ConnectionClosed:
        return found


START = '{"type":"start","session_id":"s","user_utterance":"hello"}'


def test_sigterm_drains_and_exits_0(tmp_path: Path) -> None:
    with scripted(tmp_path, SCRIPT_REPLY_SECONDS="1") as (process, url), client(url) as socket:
        socket.send(START)
        assert '"ack"' in str(socket.recv(timeout=5))
        process.send_signal(signal.SIGTERM)
        heard = frames(socket)
        assert any('"draining"' in frame for frame in heard)
        assert '"usage"' in heard[-1]
        assert socket.close_code == 1001
        assert process.wait(5) == 0


def test_a_second_sigterm_exits_at_once(tmp_path: Path) -> None:
    with scripted(tmp_path, SCRIPT_REPLY_SECONDS="60") as (process, url), client(url) as socket:
        socket.send(START)
        assert '"ack"' in str(socket.recv(timeout=5))
        process.send_signal(signal.SIGTERM)
        while '"draining"' not in str(socket.recv(timeout=5)):
            pass
        process.send_signal(signal.SIGTERM)
        # The drain alone would take 25 s, and exit with 0.
        assert process.wait(15) == 143


async def test_an_engine_of_a_version_that_does_not_do_is_told_in_one_line_and_exits_70(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = asyncio.get_running_loop().create_future()
    ended.set_exception(EngineVersionError("vLLM 0.99.0: engine: expected AsyncLLM.abort, found none"))
    assert process._status(SimpleNamespace(ended=ended)) == os.EX_SOFTWARE  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert said.err.splitlines() == ["yap-runtime: vLLM 0.99.0: engine: expected AsyncLLM.abort, found none"]
    assert not said.out


def test_a_dead_engine_ends_its_turns_and_the_process_within_5_s(tmp_path: Path) -> None:
    with (
        scripted(tmp_path, SCRIPT_REPLY_SECONDS="60", SCRIPT_DIES_AFTER="1.5") as (process, url),
        client(url) as socket,
    ):
        socket.send(START)
        heard = frames(socket)
        assert '"generation_failed"' in heard[-2]
        assert '"failed":true' in heard[-1]
        assert process.wait(5) == 70
        assert process.stderr is not None
        assert process.stderr.read() == "yap-runtime: the engine died: the scripted engine died; restart the server\n"


@pytest.mark.parametrize("where", ["loop", "thread"])
def test_what_cannot_be_stopped_is_left_and_told(tmp_path: Path, where: str) -> None:
    with scripted(tmp_path, SCRIPT_STUCK=where) as (process, url), client(url):
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 70
        assert process.stderr is not None
        told = process.stderr.read()
        assert told.startswith("yap-runtime: drained, and not stopped 0.5 s later; every thread's place follows\n")
        assert told.count("most recent call first") >= 2


@pytest.mark.parametrize("arguments", [["--help"], ["settings"], ["serve", "--help"]])
def test_the_command_line_explains_itself(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "runtime", *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout
