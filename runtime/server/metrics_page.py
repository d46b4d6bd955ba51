"""The page that Prometheus reads. Anybody may ask for it, so it is made a little at a time, and not for everybody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

# Between two looks at the clock: some milliseconds at most.
SAMPLES_AT_ONCE = 50
# Works so long in one step of the event loop.
STEP_S = 0.001
# A page is good for so many times what it took to make: who asks for it again and again gets a tenth of the time.
GOOD_FOR = 10


class MetricsPage:
    """Makes the page, and keeps it for as long as it is good."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.perf_counter) -> None:
        self._registry = registry
        self._clock = clock
        self._page = b""
        self._good_until = float("-inf")
        # Who waits for a page goes on one by one, each in a step of the loop.
        self._lock = asyncio.Lock()

    async def read(self) -> bytes:
        """All metrics as Prometheus text, version 0.0.4."""
        async with self._lock:
            if self._clock() >= self._good_until:
                await self._make()
            return self._page

    async def _make(self) -> None:
        parts: list[bytes] = []
        worked, began = 0.0, self._clock()
        for part in pieces(self._registry):
            parts.append(part)
            if (took := self._clock() - began) >= STEP_S:
                worked += took
                await asyncio.sleep(0)
                began = self._clock()
        worked += self._clock() - began
        self._page = b"".join(parts)
        self._good_until = self._clock() + GOOD_FOR * worked


class _Piece(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        yield self._metric


def pieces(registry: CollectorRegistry) -> Iterator[bytes]:
    """What `generate_latest` gives, piece by piece."""
    for metric in registry.collect():
        samples = metric.samples
        # Samples that Prometheus does not know of in this version of its text are told as metrics of their own, behind
        # the others; such a metric is not cut.
        whole = metric.type not in ("gauge", "counter") or any(one.name.endswith("_created") for one in samples)
        step = max(1, len(samples)) if whole else SAMPLES_AT_ONCE
        for at in range(0, max(1, len(samples)), step):
            piece = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            piece.samples = samples[at : at + step]
            text = generate_latest(_Piece(piece))
            yield text if at == 0 else text.split(b"\n", 2)[2]  # the name and the help text come once
