"""Timeouts that lose no cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Return what the work gives in time; else cancel it, and raise when it has ended.

    Not `asyncio.wait_for`: before Python 3.12, that loses a cancellation which comes in the moment between the work's
    end and the waking of whoever waits. A task that is ended by cancelling it would go on for ever.

    Raises:
        asyncio.TimeoutError: it took longer than `seconds`.
    """
    task = asyncio.ensure_future(work)
    late = False
    try:
        await asyncio.wait((task,), timeout=seconds)
    finally:
        if late := not task.done():
            task.cancel()
            await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # seen, so that nobody is told of an error that was never looked at
    if late and task.cancelled():
        raise asyncio.TimeoutError
    return task.result()
