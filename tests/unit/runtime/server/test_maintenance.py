"""Prefix-cache resetter: only while nothing runs, and never what was just paid for."""

from __future__ import annotations

import asyncio

from runtime.deployment.metrics import Metrics
from runtime.engines import Load, Sampling
from runtime.server.maintenance import CacheResetter
from tests.harness.clock import Clock
from tests.harness.scripted import ScriptedEngine
from tests.harness.waiting import eventually


async def test_caches_are_reset_while_nothing_runs() -> None:
    engine, metrics = ScriptedEngine(), Metrics()
    assert await CacheResetter(engine, metrics, 600).maybe_reset() is True
    assert engine.resets == 1
    assert b"yap_cache_resets_total 1.0" in metrics.render()


async def test_nothing_is_reset_under_a_running_turn() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    resetter = CacheResetter(engine, Metrics(), 600)
    running = asyncio.ensure_future(engine.generate([], Sampling(), lambda delta: None))
    await asyncio.sleep(0)
    assert await resetter.maybe_reset() is False
    running.cancel()
    await asyncio.wait((running,))
    assert await resetter.maybe_reset() is True


async def test_what_was_warmed_within_the_interval_stays() -> None:
    engine, clock = ScriptedEngine(), Clock()
    resetter = CacheResetter(engine, Metrics(), 600, clock)
    resetter.warmed()
    clock.now = 599
    assert await resetter.maybe_reset() is False
    clock.now = 600
    assert await resetter.maybe_reset() is True


async def test_what_is_warmed_while_the_engine_is_asked_stays_too() -> None:
    class Asked(ScriptedEngine):
        async def load(self) -> Load:
            resetter.warmed()
            return await super().load()

    engine = Asked()
    resetter = CacheResetter(engine, Metrics(), 600)
    assert await resetter.maybe_reset() is False
    assert engine.resets == 0


async def test_an_engine_that_refuses_is_not_counted() -> None:
    metrics = Metrics()
    assert await CacheResetter(ScriptedEngine(refuse_reset=True), metrics, 600).reset_engine_caches() is False
    assert b"yap_cache_resets_total 0.0" in metrics.render()


async def test_it_comes_back_every_interval() -> None:
    engine = ScriptedEngine()
    task = asyncio.create_task(CacheResetter(engine, Metrics(), 0.001).run())
    await eventually(lambda: engine.resets >= 3)
    task.cancel()
