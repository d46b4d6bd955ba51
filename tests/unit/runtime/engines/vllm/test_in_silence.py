"""What is done after readiness waits for silence, step by step, and ends."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines import EngineOptions
from runtime.engines.vllm import exercise
from runtime.engines.vllm.arguments import FEW_GRAPHS, prepare_environment

LOOKS = round(exercise.SILENCE_S / exercise.LOOK_S)
MOST = round(exercise.PATIENCE_S / exercise.LOOK_S)


async def looked(speaking: list[bool], work: int) -> list[int]:
    """Return at which look each step was done, while requests run as told; nothing runs after that."""
    done: list[int] = []
    looks = 0
    rest = asyncio.sleep

    async def sleep(seconds: float) -> None:
        await rest(0)

    def running() -> bool:
        nonlocal looks
        looks += 1
        return looks <= len(speaking) and speaking[looks - 1]

    async def step() -> int:
        done.append(looks)
        return work - len(done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exercise.asyncio, "sleep", sleep)
        await asyncio.wait_for(exercise.in_silence(step, running), 60)
    return done


@given(st.lists(st.booleans(), max_size=3 * MOST), st.integers(1, 5))
def test_each_step_is_done_in_silence_or_when_it_has_waited_long(speaking: list[bool], work: int) -> None:
    done = asyncio.run(looked(speaking, work))
    assert len(done) == work
    assert done == sorted(set(done))
    for last, look in zip([0, *done], done, strict=False):
        assert look - last <= MOST
        silent = look >= LOOKS and not any(speaking[max(0, look - LOOKS) : look])
        assert silent or look - last == MOST


def test_where_somebody_always_speaks_steps_are_done_now_and_then() -> None:
    assert asyncio.run(looked([True] * 10 * MOST, 3)) == [MOST, 2 * MOST, 3 * MOST]


def test_in_silence_each_look_has_its_step() -> None:
    assert asyncio.run(looked([], 3)) == [LOOKS, LOOKS + 1, LOOKS + 2]


def test_one_who_speaks_puts_the_rest_off() -> None:
    assert asyncio.run(looked([False] * LOOKS + [True], 2)) == [LOOKS, 2 * LOOKS + 1]


@pytest.mark.parametrize("wanted", [True, False])
def test_the_engine_s_process_is_told(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FEW_GRAPHS, "of an engine before it")
    prepare_environment(EngineOptions(graphs_after_readiness=wanted))
    assert (FEW_GRAPHS in os.environ) == wanted
