"""A replica of Ray Serve that is a server: what `process` is for a process of its own.

It starts as any server does. Ray's proxy holds the sockets and hands their messages on; readiness is that the
constructor returns, and an engine that dies takes the process with it, so that Ray starts another one.

    constructor: loads ──► Ray routes to it ──► Ray takes it away ──► `draining`, turns end, 1001 ──► destructor: stops
"""

from __future__ import annotations

import asyncio
import logging
import os
from logging.handlers import MemoryHandler
from pathlib import Path

import structlog
from starlette.applications import Starlette

from runtime.deployment.settings import RuntimeSettings, SettingsError
from runtime.deployment.settings import load as load_settings
from runtime.host import logs
from runtime.host.supervision import Background
from runtime.server.app import create_app
from runtime.server.process import begin, exit_now, failure, leave
from runtime.server.ray_serve import insides
from runtime.server.ray_serve.scaling import HELD, SLOTS, TURNS
from runtime.server.service import Phase, Service

# A drain begins so much later than Ray's at most.
LOOK_S = 0.1
# The logger of Ray's log of a replica.
RAY_LOG = "ray.serve"

log = structlog.get_logger(__name__)


class ReplicaError(RuntimeError):
    """Why a replica cannot be, as Ray shows it: a status of `process`, a line for each problem, and where its log is.

    Attributes:
        status: with which a server of its own would have exited.
        reason: a line for each problem.
    """

    def __init__(self, error: BaseException) -> None:
        self.status, self.reason = failure(error)
        where = "".join(f"\nmore in {path}" for path in outputs())
        super().__init__(f"exit status {self.status}: {self.reason}{where}")


class Replica:
    """One server, from its settings to its end.

    Attributes:
        service: what it serves with.
    """

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray awaits it
        """Load what the environment names, and be ready.

        Raises:
            ReplicaError: the settings are wrong, the artifact is refused, or the engine did not load.
        """
        try:
            settings = load_settings()
            check(settings, insides.slots())
            leaving = insides.leaving()
            # Ray keeps what a process prints, in some modes by a logger of its own.
            begin(settings, "Ray Serve", log_folder=None, leave_loggers=("ray",))
            self.service = Service(settings)
            self.service.start()
            await self.service.opened()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - Ray shows it to who deploys
            refused = ReplicaError(error)
            log.error("replica_refused", status=refused.status, reason=refused.reason)
            logs.flush()  # Ray ends the process at once
            raise refused from None
        self._background = Background()
        self._background.spawn("leave", self._leave(leaving))
        self._background.spawn("end", self._end())

    def __serve_build_asgi_app__(self) -> Starlette:
        """Make the application. Its lifespan, which Ray runs, stops what was started."""
        return create_app(self.service)

    async def check_health(self) -> None:
        """Ray asks this, and starts another replica where it fails.

        Raises:
            RuntimeError: the engine is dead.
        """
        if self.service.phase is Phase.DEAD:
            raise RuntimeError(self.service.reason)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `scaling` decides by."""
        now = self.service.readiness()
        return {TURNS: now.requests_running + now.requests_waiting, HELD: now.slots_held, SLOTS: now.slots}

    async def reconfigure(self, user_config: object) -> None:
        """Read the keys anew, as SIGHUP does: another `user_config` reaches replicas without starting them anew."""
        self.service.reload_keys()

    async def _leave(self, leaving: insides.Leaving) -> None:
        """Drain when Ray takes the replica away: without it, idle sockets would be waited for, and then cut."""
        while not leaving():  # noqa: ASYNC110 - a flag of Ray's is all that there is
            await asyncio.sleep(LOOK_S)
        leave(self.service)

    async def _end(self) -> None:
        """End the process where the engine has died. What has drained is Ray's to end."""
        await asyncio.wait((self.service.ended,))
        error = self.service.ended.exception()
        if error is not None:
            status, text = failure(error)
            log.error("replica_ends", status=status, reason=text)
            exit_now(status)


def outputs() -> list[str]:
    """The files that keep what this process, and the engine's own, print: Ray names a pair of them for each process.

    An engine says there what it tells nobody else. Ray's own log of the replica may hold what this process prints
    instead. None where nothing is kept.
    """
    found = [Path(os.path.realpath(f"/proc/self/fd/{number}")) for number in (1, 2)]
    for handler in logging.getLogger(RAY_LOG).handlers:
        file = handler.target if isinstance(handler, MemoryHandler) else handler
        if isinstance(file, logging.FileHandler):
            found.append(Path(file.baseFilename))
    return list(dict.fromkeys(str(path) for path in found if path.is_file()))


def check(settings: RuntimeSettings, slots: int) -> None:
    """Refuse what cannot be in Ray's hands.

    Raises:
        SettingsError: with a line for each problem.
    """
    problems = []
    if slots != settings.max_concurrent_connections:
        problems.append(
            f"max_ongoing_requests: expected MAX_CONCURRENT_CONNECTIONS, {settings.max_concurrent_connections}, since "
            f"an open socket holds one; found {slots}; leave it out of the configuration"
        )
    if settings.admin_port is not None:
        problems.append(
            f"ADMIN_PORT: expected none, since Ray drains its replicas itself, found {settings.admin_port}; unset it"
        )
    if problems:
        raise SettingsError(problems)
