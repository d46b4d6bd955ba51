"""The page that Prometheus reads: whole, and harmless however many ask for it."""

from __future__ import annotations

import asyncio
import time
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily

from runtime.deployment.metrics import Metrics
from runtime.deployment.principal_metrics import PrincipalFigures
from runtime.server import metrics_page
from runtime.server.metrics_page import SAMPLES_AT_ONCE, STEP_S, MetricsPage, pieces
from runtime.wire.frames import Usage
from tests.harness.scripted import serving

USAGE = Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=2, finish_reason="stop", ttft_ms=1.0, duration_ms=5.0)


def many_keys(number: int) -> Metrics:
    """Metrics of a server with so many keys, with names that need escapes."""
    metrics = Metrics()
    metrics.principals = lambda: [PrincipalFigures(f'k"{n}\\\n', n, 1, 2, 3, 4, 5, 6, 7) for n in range(number)]
    return metrics


@pytest.mark.parametrize("keys", [0, 1, SAMPLES_AT_ONCE, SAMPLES_AT_ONCE + 1, 500])
async def test_the_page_is_what_the_library_would_write(keys: int) -> None:
    metrics = many_keys(keys)
    metrics.turn_ended("done", USAGE, [0.01, 0.2])
    for code in (1000, 1001, 3000, 4999):
        metrics.connection_closed(code)
    assert await MetricsPage(metrics.registry).read() == metrics.render()


def test_every_kind_of_metric_is_written_as_the_library_writes_it() -> None:
    registry = CollectorRegistry()
    Counter("a", "a\nb\\", ["x"], registry=registry)
    for number in range(SAMPLES_AT_ONCE * 2 + 1):
        Counter(f"c{number}", "c", registry=registry).inc(number)
    wide, gauge = Counter("wide", "w", ["x"], registry=registry), Gauge("g", "g\nh", ["x"], registry=registry)
    for number in range(SAMPLES_AT_ONCE * 2 + 1):
        wide.labels(f"{number}\n").inc()
        gauge.labels(number).set(float("nan"))
    Histogram("h", "h", ["x"], registry=registry).labels("y").observe(1)
    Info("i", "i", registry=registry).info({"k": "v"})
    assert b"".join(pieces(registry)) == generate_latest(registry)


class Told:
    """A collector that counts how often it is asked."""

    asked = 0

    def collect(self) -> list[CounterMetricFamily]:
        """Nothing."""
        self.asked += 1
        return []


async def test_who_asks_again_and_again_gets_a_tenth_of_the_time() -> None:
    told, registry, now = Told(), CollectorRegistry(), 0.0
    registry.register(told)  # type: ignore[arg-type]
    asked = told.asked

    def clock() -> float:  # each look at it costs something
        nonlocal now
        now += 0.001
        return now

    page = MetricsPage(registry, clock)
    began = now
    for _ in range(1000):
        await page.read()
    making = (told.asked - asked) * 0.001  # between two looks at the clock
    assert making < 1.5 / metrics_page.GOOD_FOR * (now - began)
    now += 60
    before = told.asked
    await page.read()
    assert told.asked == before + 1


async def test_a_page_of_many_keys_and_many_who_ask_hold_nobody_up() -> None:
    page = MetricsPage(many_keys(2000).registry)
    steps: list[float] = []
    reading = [asyncio.create_task(page.read()) for _ in range(200)]
    while not all(task.done() for task in reading):
        began = time.thread_time()
        await asyncio.sleep(0)
        steps.append(time.thread_time() - began)
    assert len({task.result() for task in reading}) == 1
    assert len(steps) > 20  # it was made in steps, and read in steps
    assert sorted(steps)[len(steps) * 9 // 10] < 10 * STEP_S


async def test_a_failed_page_is_made_anew() -> None:
    class Broken(Told):
        broken = False

        def collect(self) -> list[CounterMetricFamily]:
            if self.broken:
                raise ValueError("odd")
            return super().collect()

    registry, part = CollectorRegistry(), Broken()
    registry.register(part)  # type: ignore[arg-type]
    part.broken = True
    page = MetricsPage(registry)
    with pytest.raises(ValueError, match="odd"):
        await page.read()
    part.broken = False
    assert await page.read() == b""


async def test_the_page_is_served_fresh() -> None:
    async with serving() as running:
        for number in range(3):
            page = await asyncio.to_thread(_read, running.port)
            assert f"yap_cancels_total {float(number)}".encode() in page
            running.service.metrics.cancelled()
            await asyncio.sleep(0.2)


def _read(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        body: bytes = answer.read()
    return body
