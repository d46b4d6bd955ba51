"""Ray Serve with `deploy/ray/serve.yaml` around scripted engines, on several nodes of this machine."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import yaml

from tests.harness.fleet.processes import cpu_seconds, family, resident_kib
from tests.harness.scripted import KEY
from tests.harness.server import free_port

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-ray/bin/python"
CONFIGURATION = ROOT / "deploy/ray/serve.yaml"
MISSING = "Ray is not installed: images/install.sh .venv-ray ray"
SLOTS = 40
# Of a node: room for two replicas more than a test has.
CPUS = 3
# Quicker than Ray is by itself, for tests that wait for it; and patient, on a machine that does other work too.
QUICK = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_worker_register_timeout_seconds": "240",
    "RAY_health_check_failure_threshold": "60",
    # A replica that does not say in time how many requests it has is passed over: its sessions go elsewhere.
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "20",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "20",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    # Each would be a Python process that nobody asked for yet.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


@dataclass(frozen=True)
class RayReplica:
    """A replica as Ray knows it."""

    id: str
    state: str
    pid: int | None
    node: str | None


class RayServe:
    """A cluster of several nodes, and the application on it.

    The context manager starts it, and ends every process of it.

    Attributes:
        port: of Ray's proxy.
        url: of its WebSocket.
        http: the address of its HTTP paths.
        configuration: what is deployed.
    """

    name = "Ray"

    def __init__(
        self,
        nodes: int = 2,
        build: str = "tests.harness.fleet.ray_app:build",
        *,
        arguments: Mapping[str, object] | None = None,
        cpus: int = CPUS,
        by_command: bool = False,
        tries: int | None = None,
        **variables: str,
    ) -> None:
        """Have so many nodes with so many `cpus` each; what is not said is for scripted engines.

        By command, what is deployed is so by `serve deploy`, as people do it, and Serve is started by that. So many
        tries has a replica to start, and Ray's own number where nothing is said.
        """
        self._nodes, self._cpus = nodes, cpus
        self._api = free_port() if by_command else 0
        self._tries = {"RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": str(tries)} if tries is not None else {}
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}/ws"
        self.http = f"http://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="yap-ray-")
        self.log = Path(self._folder.name) / "output.log"
        self.configuration = shipped() | {"http_options": {"host": "127.0.0.1", "port": self.port}}
        application = self.application
        application["import_path"] = build
        application["args"] = {"gpus": 0, "cpus": 1, "replicas": 2, **(arguments or {})}
        application["runtime_env"]["env_vars"] = {
            "ARTIFACT": "/",
            "ARTIFACT_TRUST": "unsigned",
            "TEXT_API_KEY": KEY,
            "MAX_CONCURRENT_CONNECTIONS": str(SLOTS),
            "WS_MAX_MESSAGES_PER_WINDOW": "0",
            **variables,
        }
        self.process: subprocess.Popen[str] | None = None

    @property
    def application(self) -> dict[str, Any]:
        """The application in the configuration."""
        return cast("dict[str, Any]", self.configuration["applications"][0])

    def __enter__(self) -> RayServe:
        # Each node's workers find the modules as this process does.
        environment = {**QUICK, **os.environ, **self._tries, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": self._folder.name}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(PYTHON, "-m", "tests.harness.fleet.ray_cluster"),
                    *map(str, (self._nodes, self.port, self._cpus, self._api)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=ROOT,
                text=True,
            )
        try:
            self._read()
            self.deploy()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is None:
            return
        started = family(self.process.pid)
        try:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            for pid in started[1:]:  # those that outlived it; nobody else has had their numbers in this time
                with suppress(OSError):
                    if b"ray" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
            self._folder.cleanup()

    def _read(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"Ray ended:\n{self.log.read_text(errors='replace')[-6000:]}")
        return cast("dict[str, Any]", json.loads(line))

    def _ask(self, **what: object) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self._read()

    def deploy(self) -> None:
        """Have Ray take on the configuration, as `serve deploy` does; returns at once."""
        if not self._api:
            self._ask(do="deploy", config=self.configuration)
            return
        file = Path(self._folder.name) / "serve.yaml"
        file.write_text(yaml.safe_dump(self.configuration))
        self.command("deploy", str(file))

    def command(self, *arguments: str) -> str:
        """Run Ray's command `serve` on the cluster, and return what it prints."""
        address = f"http://127.0.0.1:{self._api}"
        command = [PYTHON.with_name("serve"), *arguments, "--address", address]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(f"serve {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def wait_failed(self, timeout: float = 120) -> str:
        """Wait until Ray has given up what was deployed, and return what it says of it."""
        began = time.monotonic()
        while True:
            for one in self._ask(do="status")["applications"].values():
                if one["status"] == "DEPLOY_FAILED":
                    return str(one["message"])
            if time.monotonic() - began > timeout:
                raise RuntimeError(f"nothing failed:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)

    def replicas(self, state: str = "RUNNING") -> list[RayReplica]:
        """The replicas in a state."""
        found = [RayReplica(**one) for one in self._ask(do="status")["replicas"]]
        return [one for one in found if one.state == state]

    def wait_running(
        self, number: int, *, without: frozenset[str] = frozenset(), timeout: float = 120
    ) -> list[RayReplica]:
        """Wait until so many replicas run, none of them one of `without`, and return them."""
        began = time.monotonic()
        while True:
            answer = self._ask(do="status")
            found = [RayReplica(**one) for one in answer["replicas"] if one["state"] == "RUNNING"]
            if len(found) == number and not {one.id for one in found} & without:
                return found
            failed = any(one["status"] == "DEPLOY_FAILED" for one in answer["applications"].values())
            if failed or time.monotonic() - began > timeout:
                raise RuntimeError(f"expected {number} replicas, found {answer}:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)

    def wait_gone(self, ids: frozenset[str], timeout: float = 120) -> None:
        """Wait until Ray has nothing left of some replicas."""
        began = time.monotonic()
        while left := {one["id"] for one in self._ask(do="status")["replicas"]} & ids:
            if time.monotonic() - began > timeout:
                raise RuntimeError(f"expected these to go: {left}")
            time.sleep(0.2)

    def cpu_seconds(self) -> float:
        """Return the CPU that Ray's proxy has used so far."""
        return cpu_seconds(self._process_of("ProxyActor"))

    def resident_kib(self) -> int:
        """Return the resident memory of Ray's proxy in KiB."""
        return resident_kib(self._process_of("ProxyActor"))

    def proxy(self) -> int:
        """Return the process of Ray's proxy."""
        return self._process_of("ProxyActor")

    def _process_of(self, actor: str) -> int:
        assert self.process is not None
        for pid in family(self.process.pid):
            with suppress(OSError):
                if actor.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        raise RuntimeError(f"no process of {actor}")


def shipped() -> dict[str, Any]:
    """The configuration that is shipped."""
    return copy.deepcopy(yaml.safe_load(CONFIGURATION.read_text("utf-8")))
