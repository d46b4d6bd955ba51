"""Work in the background that outlives its own failures: each is logged, and nothing ends because of one.

A task that nobody awaits dies in silence. So loops are run by `repeat`, which logs what a step raises, waits a little
longer each time, and goes on; everything else that nobody awaits is started by `Background`, or called by `attempt`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from runtime.host.timeouts import within

log = structlog.get_logger(__name__)

A = TypeVar("A")
T = TypeVar("T")

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
# What a step has to put itself in order, when it is of no use any more.
LEAVE_S = 1.0


class StepFailedError(RuntimeError):
    """A step ended in a way that would have taken the loop, or the process, with it."""


async def repeat(
    name: str,
    step: Callable[[], Awaitable[object]],
    interval: float,
    *,
    longest_wait: float = LONGEST_WAIT_S,
    timeout: float | None = None,
) -> None:
    """Take a step for ever, an interval after the one before. What it raises is logged, and the wait grows.

    Only the cancellation of this task ends it: a cancellation or an exit that comes out of the step is a failure too.

    Args:
        name: what the log calls it.
        step: one round of the work.
        interval: seconds between steps.
        longest_wait: most seconds between steps that fail, where the interval is not longer.
        timeout: seconds after which a step that hangs is cancelled.
    """
    failures = 0
    while True:
        await asyncio.sleep(max(interval, wait_after(failures, longest_wait)))
        work = contained(step)
        task = asyncio.ensure_future(work if timeout is None else within(timeout, work))
        try:
            await asyncio.wait((task,))
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
        error = StepFailedError("it was cancelled") if task.cancelled() else task.exception()
        if error is None:
            if failures:
                log.info("background_recovered", task=name, failures=failures)
            failures = 0
            continue
        failures += 1
        if failures & (failures - 1) == 0:  # the first, second, fourth …: a failure for ever is no flood
            report(name, error, failures)


def report(name: str, error: BaseException, failures: int = 1) -> None:
    """Log a failure in the background."""
    log.error("background_failed", task=name, failures=failures, exc_info=error)


def wait_after(failures: int, longest: float = LONGEST_WAIT_S) -> float:
    """Seconds to wait after so many failures in a row: twice as long each time.

    >>> [wait_after(failures) for failures in (0, 1, 2, 3, 100)]
    [0.0, 0.5, 1.0, 2.0, 60.0]
    """
    return min(longest, FIRST_WAIT_S * 2.0 ** min(failures - 1, 32)) if failures else 0.0


async def contained(step: Callable[[], Awaitable[T]]) -> T:
    """Take a step, whose wish to exit becomes a failure: asyncio lets these through to whoever runs the loop.

    Raises:
        StepFailedError: instead of SystemExit and KeyboardInterrupt.
    """
    try:
        return await step()
    except SystemExit as error:
        raise StepFailedError(f"a library asked for exit status {error.code or 0}") from error
    except KeyboardInterrupt as error:
        raise StepFailedError(f"it raised {type(error).__name__}") from error


async def beside(
    aside: Callable[[], Awaitable[A]], work: Callable[[], Awaitable[T]], left: Callable[[], None]
) -> tuple[A, T]:
    """Take two steps at once, each contained, and return when both are through.

    What is found out aside counts more: its failure is told at once, and rather than what the work failed with.

    Args:
        left: called when the work is through and what is done aside is not.
    """
    found, working = asyncio.ensure_future(contained(aside)), asyncio.ensure_future(contained(work))
    try:
        await asyncio.wait((found, working), return_when=asyncio.FIRST_COMPLETED)
        if not found.done():
            left()
        return await found, await working
    finally:
        for task in (found, working):
            task.add_done_callback(_hear)
            task.cancel()
        await asyncio.wait((found, working), timeout=LEAVE_S)


def _hear(task: asyncio.Task[Any]) -> None:
    """Hear what a task that nobody waits for any more failed with: there was something to tell before."""
    if not task.cancelled():
        task.exception()


def attempt(name: str, call: Callable[[], object]) -> bool:
    """Call something whose failure must not stop what comes after it; log the failure. Return whether it succeeded."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - that is what this is for
        report(name, error)
        return False
    return True


def watch(name: str, task: asyncio.Task[None]) -> asyncio.Task[None]:
    """Have a task's failure logged, since nobody awaits it."""

    def done(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            report(name, error)

    task.add_done_callback(done)
    return task


class Background:
    """The tasks of one owner: kept, so that they are not collected, and watched."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Start a task."""
        task = watch(name, asyncio.get_running_loop().create_task(work, name=name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel(self) -> None:
        """Cancel all of them, and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
