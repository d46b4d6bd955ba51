"""The watch over a running engine: whether it is alive, and what its scheduler holds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from runtime.engines import Engine, EngineDeadError, Load
from runtime.host.supervision import contained, repeat
from runtime.host.timeouts import within

HEALTH_INTERVAL_S = 0.5
# A health check that hangs is tried again; so is one that fails, soon, since it is what tells the engine's death.
HEALTH_TIMEOUT_S = 5.0
HEALTH_LONGEST_WAIT_S = 1.0
LOAD_TIMEOUT_S = 2.0


class EngineWatch:
    """Asks after an engine for ever. After its health apart from its load, so that odd figures cannot hide its death.

    Args:
        engine: that is watched.
        died: told of its death.
        note: told of its load.
    """

    def __init__(self, engine: Engine, died: Callable[[EngineDeadError], None], note: Callable[[Load], None]) -> None:
        self._engine = engine
        self._died = died
        self._note = note

    async def health(self) -> None:
        """Ask after the engine's health for ever."""

        async def check() -> None:
            with self._telling_death():
                await self._engine.health()

        await repeat(
            "engine_health",
            check,
            HEALTH_INTERVAL_S,
            longest_wait=HEALTH_LONGEST_WAIT_S,
            timeout=HEALTH_TIMEOUT_S,
        )

    async def load(self) -> None:
        """Note for ever what the engine's scheduler holds."""

        async def note() -> None:
            with self._telling_death(), contextlib.suppress(asyncio.TimeoutError):  # busy, and alive
                self._note(await within(LOAD_TIMEOUT_S, contained(self._engine.load)))

        await repeat("engine_load", note, HEALTH_INTERVAL_S)

    @contextlib.contextmanager
    def _telling_death(self) -> Iterator[None]:
        try:
            yield
        except EngineDeadError as error:
            self._died(error)
