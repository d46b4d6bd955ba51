"""A replica, with Ray's part played by the test: it loads, serves, leaves and dies as the server's own process does."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from logging.handlers import MemoryHandler
from pathlib import Path

import pytest
import structlog
from starlette.types import Message

from runtime.deployment.settings import SettingsError
from runtime.host import logs
from runtime.server.ray_serve import insides
from runtime.server.ray_serve import replica as replica_module
from runtime.server.ray_serve.replica import Replica, ReplicaError
from runtime.server.service import Phase, Service
from tests.harness.scripted import KEY, ScriptedEngine
from tests.harness.scripted_process import load_script
from tests.harness.waiting import eventually

SLOTS = 3


@dataclass
class Ray:
    """What a replica knows of Ray, and what it did.

    Attributes:
        leaves: whether Ray has begun to take it away.
        exits: the statuses with which the process would have ended.
    """

    leaves: bool = False
    exits: list[int] = field(default_factory=list)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    found = Ray()
    monkeypatch.setattr(insides, "slots", lambda: SLOTS)
    monkeypatch.setattr(insides, "leaving", lambda: lambda: found.leaves)
    monkeypatch.setattr(replica_module, "exit_now", found.exits.append)
    # The log is the process's: the test's stays as it is.
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    monkeypatch.setattr(logs, "catch_stray_errors", lambda: None)
    monkeypatch.setattr(Service, "load", load_script)
    values = {"ARTIFACT": "/", "TEXT_API_KEY": KEY, "MAX_CONCURRENT_CONNECTIONS": str(SLOTS), "DRAIN_TIMEOUT_S": "30"}
    for name, value in {**values, "SCRIPT_REPLY_SECONDS": "0.2"}.items():
        monkeypatch.setenv(name, value)
    return found


@asynccontextmanager
async def started() -> AsyncIterator[Replica]:
    """Make a replica as Ray does, with the application's lifespan around it."""
    replica = Replica.__new__(Replica)
    await replica.__init__()  # type: ignore[misc]
    app = replica.__serve_build_asgi_app__()
    async with app.router.lifespan_context(app):
        yield replica


class Peer:
    """A client whose messages Ray's proxy hands on: no socket stands behind it."""

    def __init__(self, replica: Replica, key: str = KEY) -> None:
        self.inbound: asyncio.Queue[Message] = asyncio.Queue()
        self.inbound.put_nowait({"type": "websocket.connect"})
        self.heard: list[str] = []
        self.code: int | None = None
        scope = {
            "type": "websocket",
            "path": "/ws",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"x-api-key", key.encode()), (b"x-session-id", b"me")],
        }
        self.task = asyncio.ensure_future(replica.__serve_build_asgi_app__()(scope, self.inbound.get, self._take))

    async def _take(self, message: Message) -> None:
        if message["type"] == "websocket.send":
            self.heard.append(str(message["text"]))
        elif message["type"] == "websocket.close":
            self.code = message["code"]
            self.inbound.put_nowait({"type": "websocket.disconnect", "code": message["code"]})

    def say(self) -> None:
        """Begin a turn."""
        text = '{"type": "start", "session_id": "me", "history": [], "user_utterance": "hello"}'
        self.inbound.put_nowait({"type": "websocket.receive", "text": text})

    def has(self, kind: str) -> bool:
        """Tell whether a frame of this type came."""
        return any(f'"type":"{kind}"' in text for text in self.heard)


async def test_a_replica_that_is_taken_away_tells_its_clients_and_ends_their_turns(ray: Ray) -> None:
    async with started() as replica:
        assert replica.service.phase is Phase.READY
        await replica.check_health()
        speaking, idle = Peer(replica), Peer(replica)
        speaking.say()
        await eventually(lambda: speaking.has("token"))
        await eventually(lambda: replica.service.admission.held == 2)
        assert (await replica.record_autoscaling_stats())["slots_held"] == 2
        ray.leaves = True
        await eventually(lambda: idle.code == 1001)
        assert idle.has("draining")
        await eventually(lambda: speaking.code == 1001)
        kinds = [text.partition('"type":"')[2].partition('"')[0] for text in speaking.heard]
        assert kinds[-1] == "done"
        assert "draining" in kinds
        late = Peer(replica)
        await eventually(lambda: late.code == 1001)
        await asyncio.gather(speaking.task, idle.task, late.task)
        await asyncio.wait_for(asyncio.shield(replica.service.ended), 30)
        await asyncio.sleep(0)
        assert ray.exits == [], "Ray ends what has drained"


async def test_an_engine_that_dies_takes_the_process_with_it(ray: Ray) -> None:
    async with started() as replica:
        assert replica.service.deployment is not None
        assert replica.service.deployment.chat is not None
        engine = replica.service.deployment.chat.engine
        assert isinstance(engine, ScriptedEngine)
        peer = Peer(replica)
        await eventually(lambda: replica.service.admission.held == 1)
        engine.dead = True
        await eventually(lambda: ray.exits == [os.EX_SOFTWARE])
        assert peer.code == 1001
        with pytest.raises(RuntimeError, match="the engine died"):
            await replica.check_health()
        await peer.task


async def test_another_user_config_reads_the_keys_anew(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started() as replica:
        read = asyncio.Event()
        monkeypatch.setattr(replica.service, "reload_keys", read.set)
        await replica.reconfigure({"keys": 2})
        assert read.is_set()


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        (
            "MAX_CONCURRENT_CONNECTIONS",
            "4",
            "exit status 64: max_ongoing_requests: expected MAX_CONCURRENT_CONNECTIONS, 4",
        ),
        ("MAX_CONCURRENT_CONNECTIONS", "x", "exit status 64: MAX_CONCURRENT_CONNECTIONS"),
        ("ADMIN_PORT", "9000", "exit status 64: ADMIN_PORT"),
        ("SCRIPT_REPLY_SECONDS", "soon", "exit status 70: loading failed: ValueError"),
    ],
)
async def test_what_keeps_a_replica_from_being_is_told_as_the_process_tells_it(
    ray: Ray, monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ReplicaError) as found:
        async with started():
            pass
    assert str(found.value).startswith(line)
    assert found.value.__cause__ is None, "Ray pickles it"


@pytest.mark.parametrize("error", [ValueError("many\nlines"), SystemExit(3), SettingsError(["A: one", "B: two"])])
async def test_a_refusal_is_logged_whole_and_names_the_files_that_keep_what_was_printed(
    ray: Ray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException
) -> None:
    async def load(service: Service) -> None:
        raise error

    kept = [str(tmp_path / "worker.out"), str(tmp_path / "worker.err")]
    monkeypatch.setattr(Service, "load", load)
    monkeypatch.setattr(replica_module, "outputs", lambda: kept)
    with structlog.testing.capture_logs() as told, pytest.raises(ReplicaError) as found:
        await Replica.__new__(Replica).__init__()  # type: ignore[misc]
    refused = found.value
    assert str(refused).splitlines()[-2:] == [f"more in {path}" for path in kept]
    assert str(refused).startswith(f"exit status {refused.status}: {refused.reason}\n")
    (last,) = [event for event in told if event["event"] == "replica_refused"]
    assert (last["status"], last["reason"]) == (refused.status, refused.reason)


def test_only_files_keep_what_is_printed(tmp_path: Path) -> None:
    program = "from runtime.server.ray_serve.replica import outputs; import sys; print(outputs(), file=sys.stderr)"
    out, err = tmp_path / "worker.out", tmp_path / "worker.err"
    with out.open("w") as stdout, err.open("w") as stderr:
        subprocess.run([sys.executable, "-c", program], stdout=stdout, stderr=stderr, check=True)
    assert err.read_text().strip() == str([str(out), str(err)])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_rays_own_log_of_a_replica_is_named_too(tmp_path: Path) -> None:
    logger, file = logging.getLogger("ray.serve"), logging.FileHandler(tmp_path / "replica.log")
    handler = MemoryHandler(10, target=file)
    logger.addHandler(handler)
    try:
        assert str(tmp_path / "replica.log") in replica_module.outputs()
    finally:
        logger.removeHandler(handler)
        handler.close()
        file.close()
