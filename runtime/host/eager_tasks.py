"""Tasks that run at once, until they first have to wait.

An ordinary task runs when everything that is ready now has had its turn. When many clients begin a turn at the same
moment, that lets all of them take their first step before any takes its second, and the engine gets the first request
when the last one is nearly ready. Python 3.12 has such tasks of its own (`asyncio.Task(…, eager_start=True)`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


def start(coroutine: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
    """Run a coroutine up to its first wait; the rest is a task. When there is no rest, the result is there already.

    The first part runs inside the caller: there, `asyncio.current_task` is the caller's, and nothing can cancel it.
    """
    loop = asyncio.get_running_loop()
    try:
        waits_for = coroutine.send(None)
    except StopIteration as end:
        done: asyncio.Future[T] = loop.create_future()
        done.set_result(end.value)
        return done
    except asyncio.CancelledError:
        done = loop.create_future()
        done.cancel()
        return done
    except Exception as error:  # noqa: BLE001 - whoever awaits it gets it, as from a task
        done = loop.create_future()
        done.set_exception(error)
        return done
    return loop.create_task(_StartedCoroutine(coroutine, waits_for))


class _StartedCoroutine(Coroutine[Any, Any, T]):
    """A coroutine that has begun. Its first step gives the task what the coroutine waits for."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], waits_for: object) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def send(self, value: object) -> object:
        """Give the task what the coroutine waits for; later steps go to the coroutine itself."""
        self.send = self._coroutine.send  # type: ignore[assignment, method-assign]
        # A task keeps its coroutine when it has ended, and whoever keeps the task must not keep this future's result.
        waits_for, self._waits_for = self._waits_for, None
        return waits_for

    def throw(self, *error: Any) -> object:  # noqa: ANN401 - the three forms of a generator's `throw`
        """Raise an error in the coroutine, perhaps before the first step."""
        self.send = self._coroutine.send  # type: ignore[assignment, method-assign]
        try:
            return self._coroutine.throw(*error)
        finally:
            del error  # whose traceback has this frame: together they would be left to the garbage collector

    def close(self) -> None:
        """Close the coroutine."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, T]:
        """Refuse: only a task may run it."""
        raise TypeError("expected to be run by a task")
