"""Ray Serve by the commands that people type, on a real engine, and what docs/scaling.md says of Ray's limits.

Minutes, on two cores: `make test-ray` runs it, the default run does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from runtime.server.ray_serve import application
from tests.harness.fleet.ray_serve import MISSING, PYTHON, ROOT, RayServe
from tests.harness.fleet.servers import name_of
from tests.harness.scripted import KEY, Client
from yap_client import Final, Sampling
from yap_client import connect as begin_talk

WHOLE = os.environ.get("YAP_RAY") == "whole"
pytestmark = [
    pytest.mark.skipif(not WHOLE, reason="YAP_RAY=whole, which `make test-ray` sets"),
    pytest.mark.skipif(not PYTHON.exists(), reason=MISSING),
    pytest.mark.timeout(1500),
]
SLOTS = 3
# For so long a proxy believes what it knows of a replica, and asks nothing.
CACHED_S = 11
HEADERS = {"X-API-Key": KEY}
# A proxy waits this long at most for a replica to say how many requests it has.
PATIENCE = {"RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "0.1", "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1"}


@pytest.mark.engine
async def test_serve_deploy_runs_the_engine_and_says_why_it_does_not(artifact_of: Callable[[str], Path]) -> None:
    given = os.environ.get("YAP_TEST_ARTIFACT")
    folder = Path(given) if given else artifact_of("int8")
    modules = [str(ROOT), sysconfig.get_paths()["purelib"]]
    variables = {
        "ARTIFACT": str(folder.resolve()),
        "DEPLOY_MODE": "chat",
        "PYTHONPATH": os.pathsep.join(modules),
        # What the engine refuses, and says on its own output alone.
        "VLLM_CPU_KVCACHE_SPACE": "100000",
    }
    build = f"{application.__name__}:{application.build.__name__}"
    with RayServe(1, build, arguments={"replicas": 1, "gpus": None}, by_command=True, tries=1, **variables) as ray:
        message = await asyncio.to_thread(ray.wait_failed, 600)
        assert "exit status 70: loading failed: " in message
        shown = yaml.safe_load(ray.command("status"))["applications"]["yap"]
        assert "exit status 70" in shown["deployments"]["runtime"]["message"]
        kept = [Path(line.removeprefix("more in ")) for line in message.splitlines() if line.startswith("more in ")]
        said = "".join(path.read_text() for path in kept)
        assert "replica_refused" in said
        assert "100000" in said

        del ray.application["runtime_env"]["env_vars"]["VLLM_CPU_KVCACHE_SPACE"]
        ray.deploy()
        await asyncio.to_thread(ray.wait_running, 1, timeout=900)
        found = yaml.safe_load(ray.command("status"))["applications"]["yap"]
        assert found["status"] == "RUNNING"
        assert found["deployments"]["runtime"]["replica_states"] == {"RUNNING": 1}
        async with begin_talk(ray.url, KEY, session="me", persona="You are kind.") as talk:
            for text in ("What is the capital of France?", "And of Italy?"):
                said = [event async for event in talk.say(text, sampling=Sampling(max_tokens=8))]
                assert any(isinstance(event, Final) and event.text for event in said)


@pytest.fixture(scope="module")
def ray() -> Iterator[RayServe]:
    """Two replicas with few slots, and Ray as patient as it is by itself."""
    slots = {"MAX_CONCURRENT_CONNECTIONS": str(SLOTS), "WS_MAX_MESSAGE_BYTES": "65536"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENCE.items():
            patch.setenv(name, value)
        with RayServe(1, SCRIPT_REPLY="server{pid}", **slots) as running:
            running.wait_running(2)
            yield running


async def opened(ray: RayServe, key: str = "", query: str = "", timeout: float = 60) -> ClientConnection:
    headers = HEADERS | ({"X-Session-Id": key} if key else {})
    url = f"{ray.url}?session={query}" if query else ray.url
    return await connect(url, additional_headers=headers, open_timeout=timeout)


async def replica_of(socket: ClientConnection) -> str:
    """The word that the replica says which has a socket."""
    return next(iter(set((await name_of(Client(socket))).lower().rstrip(".").split())))


async def answered(ray: RayServe, key: str = "", query: str = "") -> str:
    socket = await opened(ray, key, query)
    async with socket:
        return await replica_of(socket)


async def keys(ray: RayServe) -> dict[str, str]:
    """Return a key for each replica, by the replica."""
    found: dict[str, str] = {}
    for number in range(200):
        if len(found) == 2:
            break
        found.setdefault(await answered(ray, f"key-{number}"), f"key-{number}")
    return found


async def test_only_the_header_chooses_the_replica(ray: RayServe) -> None:
    for replica, key in (await keys(ray)).items():
        assert {await answered(ray, key) for _ in range(6)} == {replica}
    assert len({await answered(ray, query="one") for _ in range(40)}) == 2


async def test_the_sessions_of_a_replica_that_does_not_answer_go_to_the_next(ray: RayServe) -> None:
    by_replica = await keys(ray)
    one, other = ray.replicas()
    assert one.pid is not None
    os.kill(one.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(CACHED_S)
        found = await answered(ray, by_replica[f"server{one.pid}"])
    finally:
        os.kill(one.pid, signal.SIGCONT)
    assert found == f"server{other.pid}"


async def test_who_finds_no_slot_waits_and_then_gets_500(ray: RayServe) -> None:
    key = next(iter((await keys(ray)).values()))
    held = [await opened(ray, key) for _ in range(2 * SLOTS)]
    waiting: list[asyncio.Task[ClientConnection]] = []
    try:
        at = Counter([await replica_of(socket) for socket in held])
        assert sorted(at.values()) == [SLOTS, SLOTS], "a full one's go to the other"
        waiting = [asyncio.create_task(opened(ray, key)) for _ in range(SLOTS)]
        await asyncio.sleep(3)
        assert not any(task.done() for task in waiting)
        with pytest.raises(InvalidStatus) as refused:
            await opened(ray, key, timeout=20)
        assert refused.value.response.status_code == 500
        await held.pop().close()
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        assert sum(task.done() for task in waiting) == 1
    finally:
        for task in waiting:
            if not task.done():
                task.cancel()
        for done in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(done, ClientConnection):
                held.append(done)
        for socket in held:
            await socket.close()


async def test_a_message_of_any_size_up_to_16_mib_is_handed_on(ray: RayServe) -> None:
    socket = await opened(ray)
    async with socket:
        await socket.send("x" * 2**20)  # 16 times what the server takes
        assert "invalid_message" in str(await asyncio.wait_for(socket.recv(), 60)), "the server itself read it"
    socket = await opened(ray)
    async with socket:
        await socket.send("x" * (2**24 + 1))
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_a_proxy_that_is_killed_takes_all_sockets_along(ray: RayServe) -> None:
    sockets = [await opened(ray, key) for key in (await keys(ray)).values()]
    os.kill(ray.proxy(), signal.SIGKILL)
    for socket in sockets:
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 30)
        assert closed.value.rcvd is None, "no close frame"
    for _ in range(300):
        with contextlib.suppress(OSError, InvalidHandshake):
            await answered(ray, "any")
            break
        await asyncio.sleep(0.2)
    assert await answered(ray, "any")
