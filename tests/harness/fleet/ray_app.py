"""The application of `deploy/ray/serve.yaml` around a scripted engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.server.ray_serve.application import build_of
from runtime.server.ray_serve.replica import Replica
from runtime.server.service import Service
from tests.harness.scripted_process import load_script


class ScriptedReplica(Replica):
    """A replica whose engine is scripted; all else is the server's."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray awaits it
        """Load the script in the place of an artifact."""
        Service.load = load_script  # type: ignore[method-assign]
        await super().__init__()


class InstantReplica(Replica):
    """A replica whose engine costs nothing; all else is the server's."""

    async def __init__(self) -> None:  # type: ignore[misc]
        """Load the table in the place of an artifact."""
        from tests.benchmarks.instant import load_instant

        Service.load = load_instant  # type: ignore[method-assign]
        await super().__init__()


def build(arguments: Mapping[str, object]) -> Any:
    """Make the application with scripted engines."""
    return build_of(ScriptedReplica, arguments)


def build_instant(arguments: Mapping[str, object]) -> Any:
    """Make the application with engines that reply out of a table."""
    return build_of(InstantReplica, arguments)
