"""Waiting for a while: in time, late, and cancelled at the worst moment."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from runtime.host.timeouts import within


async def test_what_comes_in_time_is_returned_and_its_error_raised() -> None:
    assert await within(5, asyncio.sleep(0.001, 3)) == 3

    async def fail() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await within(5, fail())


async def test_what_is_late_is_cancelled_and_has_ended() -> None:
    ended = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    with pytest.raises(asyncio.TimeoutError):
        await within(0.001, slow())
    assert ended


async def test_what_finishes_though_it_was_late_is_returned() -> None:
    async def stubborn() -> int:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return 4
        return 5

    assert await within(0.001, stubborn()) == 4


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("fails", [False, True])
async def test_no_cancellation_is_lost_however_close_to_the_end_it_comes(steps: int, *, fails: bool) -> None:
    ready = asyncio.Event()
    rounds = 0

    async def work() -> None:
        await ready.wait()
        if fails:
            raise LookupError("at the same moment")

    async def watch() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            with contextlib.suppress(LookupError):
                await within(60, work())
            ready.clear()
            await ready.wait()

    task = asyncio.get_running_loop().create_task(watch())
    await asyncio.sleep(0.001)
    ready.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,), timeout=30)
    assert task.cancelled()
    assert rounds == 1
