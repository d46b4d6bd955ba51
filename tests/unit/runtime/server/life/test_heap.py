"""Garbage: not looked for while a server loads, and looked for afterwards, in the engine's process too."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from runtime.server.life.heap import freeze_heap, keep, uncollected


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds, frozen = gc.get_threshold(), gc.get_freeze_count()
    yield
    if not frozen:
        gc.unfreeze()
    gc.set_threshold(*thresholds)
    gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_meanwhile_and_then_it_is_as_before(enabled: bool) -> None:
    if not enabled:
        gc.disable()
    with suppress(ValueError), uncollected():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled() is enabled


def test_what_is_kept_is_not_looked_through_again_here_or_in_a_forked_process() -> None:
    keep()
    assert len(gc.get_objects()) < 1000, "nobody goes through them"
    assert gc.get_freeze_count() > 10_000
    child = os.fork()
    if not child:
        os._exit(0 if len(gc.get_objects()) < 1000 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_garbage_that_is_made_after_it_was_frozen_is_found() -> None:
    freeze_heap()
    ring: list[object] = []
    ring.append(ring)
    del ring
    assert gc.collect() >= 1
