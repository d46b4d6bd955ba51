"""What the session store costs a server's thread, counted inside it: what else its machine does falls on both sides.

Every step of whatever keeps sessions is timed by the thread's own clock: the rounds of writes, what is noted in a turn,
what a connection asks, what the store answers. Writing to its socket is in it; what the loop does to call these is not,
nor is reading from the socket.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any, ParamSpec, TypeVar

from prometheus_client import CollectorRegistry, Gauge

from runtime.turns.sessions.keeper import SessionKeeper
from runtime.turns.sessions.lease import Lease
from runtime.turns.stores.wire import Wire

P = ParamSpec("P")
T = TypeVar("T")

STORE, SERVER = "yap_benchmark_store_cpu_seconds", "yap_benchmark_server_cpu_seconds"


class StoreClock:
    """Sums the CPU time of the steps that it is told of; of steps within steps, once."""

    def __init__(self) -> None:
        reads = sorted(-time.thread_time() + time.thread_time() for _ in range(1001))
        self._own = reads[len(reads) // 2]  # what a reading of the clock adds to what it measures
        self._seconds, self._steps = 0.0, 0
        self._inside = False

    @property
    def seconds(self) -> float:
        """CPU time of all steps so far."""
        return self._seconds - self._steps * self._own

    def step(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something, and count it."""
        if self._inside:
            return work(*args, **kwargs)
        self._inside, began = True, time.thread_time()
        try:
            return work(*args, **kwargs)
        finally:
            self._seconds += time.thread_time() - began
            self._steps += 1
            self._inside = False

    def watch(self, kind: type, *names: str) -> None:
        """Count methods of a class."""
        for name in names:
            setattr(kind, name, self._watched(getattr(kind, name)))

    def watch_waiting(self, kind: type, *names: str) -> None:
        """Count methods of a class that are coroutines: their steps, and not what they wait for."""
        for name in names:
            setattr(kind, name, self._watched_waiting(getattr(kind, name)))

    def _watched(self, method: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(method)
        def watched(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.step(method, *args, **kwargs)

        return watched

    def _watched_waiting(self, method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(method)
        async def watched(*args: P.args, **kwargs: P.kwargs) -> T:
            return await _Steps(method(*args, **kwargs), self)

        return watched


class _Steps:
    """A coroutine of which every step is counted."""

    def __init__(self, work: Coroutine[Any, Any, Any], clock: StoreClock) -> None:
        self._work, self._clock = work, clock

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = functools.partial(self._work.send, None)
        while True:
            try:
                awaited = self._clock.step(step)
            except StopIteration as over:
                return over.value
            try:
                step = functools.partial(self._work.send, (yield awaited))
            except GeneratorExit:
                self._work.close()
                raise
            except BaseException as error:
                step = functools.partial(self._work.throw, error)


def watch_store(registry: CollectorRegistry) -> None:
    """Have a server tell, with its metrics, what the store has cost it so far, and what all has."""
    clock = StoreClock()
    clock.watch_waiting(SessionKeeper, "run", "take", "look", "saved")
    clock.watch(SessionKeeper, "attach", "changed", "dropped")
    clock.watch(Lease, "begin", "end", "hear")
    clock.watch(Wire, "data_received")
    Gauge(STORE, "CPU time of the session store", registry=registry).set_function(lambda: clock.seconds)
    Gauge(SERVER, "CPU time of the server", registry=registry).set_function(time.process_time)
