"""Tasks that run at once: what ordinary tasks promise holds for them too."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.host import eager_tasks


async def test_what_never_waits_is_done_at_once():
    async def answer() -> int:
        return 42

    task = eager_tasks.start(answer())
    assert task.done()
    assert await task == 42


async def test_an_error_before_the_first_wait_is_told_to_who_awaits_it():
    async def fail() -> None:
        raise KeyError("no")

    task = eager_tasks.start(fail())
    assert task.done()
    with pytest.raises(KeyError):
        await task


async def test_a_cancellation_before_the_first_wait_is_one():
    async def leave() -> None:
        raise asyncio.CancelledError

    task = eager_tasks.start(leave())
    assert task.cancelled()


async def test_it_runs_to_its_first_wait_and_goes_on_later():
    steps: list[str] = []
    gate = asyncio.Event()

    async def work() -> str:
        steps.append("begun")
        await gate.wait()
        steps.append("woken")
        await asyncio.sleep(0)
        return "done"

    task = eager_tasks.start(work())
    assert steps == ["begun"]
    gate.set()
    assert await task == "done"
    assert steps == ["begun", "woken"]


async def test_what_it_waits_for_may_be_over_before_its_task_begins():
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> int:
        return await ready

    task = eager_tasks.start(work())
    ready.set_result(7)
    assert await task == 7


async def test_who_keeps_a_task_that_has_ended_does_not_keep_what_it_waited_for():
    async def wait(future: asyncio.Future[str]) -> None:
        await future

    waited_for: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = eager_tasks.start(wait(waited_for))
    waited_for.set_result("a whole prompt")
    await task
    gone = weakref.ref(waited_for)
    del waited_for
    assert gone() is None


@pytest.mark.parametrize("steps_before", [0, 1, 3])
async def test_a_cancellation_reaches_it_whenever_it_comes(steps_before: int):
    seen: list[str] = []

    async def stream() -> AsyncGenerator[int, None]:
        try:
            while True:
                yield 1
                await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0)
            seen.append("closed")

    async def work() -> None:
        source = stream()
        try:
            async for _ in source:
                pass
        finally:
            await source.aclose()
            seen.append("left")

    task = eager_tasks.start(work())
    for _ in range(steps_before):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["closed", "left"]


async def test_a_cancellation_may_be_survived():
    async def stubborn() -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "stayed"
        return "slept"

    task = eager_tasks.start(stubborn())
    task.cancel()
    assert await task == "stayed"


async def test_it_waits_for_other_tasks_and_for_threads():
    async def work() -> list[int]:
        one = eager_tasks.start(asyncio.sleep(0, 1))
        two = await asyncio.get_running_loop().run_in_executor(None, int, "2")
        return [await one, two, await asyncio.wait_for(asyncio.sleep(0.001, 3), 5)]

    assert await eager_tasks.start(work()) == [1, 2, 3]


@given(plan=st.lists(st.sampled_from(["pass", "sleep", "wait", "error"]), max_size=8), cancel_after=st.integers(0, 6))
def test_it_ends_as_an_ordinary_task_would(plan, cancel_after):
    async def work(log: list[str]) -> str:
        try:
            for step in plan:
                log.append(step)
                if step == "sleep":
                    await asyncio.sleep(0)
                elif step == "wait":
                    await asyncio.get_running_loop().run_in_executor(None, str)
                elif step == "error":
                    raise ValueError(step)
        finally:
            log.append("left")
        return "whole"

    async def outcome(*, eagerly: bool, cancelled: bool) -> tuple[str, list[str]]:
        log: list[str] = []
        task = eager_tasks.start(work(log)) if eagerly else asyncio.get_running_loop().create_task(work(log))
        if cancelled:
            for _ in range(cancel_after):
                await asyncio.sleep(0)
            task.cancel()
        try:
            return await task, log
        except BaseException as error:
            return type(error).__name__, log

    async def both() -> None:
        assert await outcome(eagerly=True, cancelled=False) == await outcome(eagerly=False, cancelled=False)
        how, log = await outcome(eagerly=True, cancelled=True)
        assert how in ("whole", "ValueError", "CancelledError")
        assert log.count("left") == 1

    asyncio.run(both())
