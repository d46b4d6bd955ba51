"""Waiting for a condition, for as long as a busy machine may need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.harness.scripted import Running  # not where the frameworks are: the runtime is not there

TIMEOUT_S = 30.0


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; fail when it does not come to hold."""

    async def wait() -> None:
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), TIMEOUT_S)


async def all_gone(running: Running, but: int = 0) -> None:
    """Wait until no socket of the server is open but so many."""
    await eventually(lambda: len(running.service.sockets._all) == but)
