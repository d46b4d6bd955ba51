"""What is done after readiness waits for silence, step by step, and ends."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines import EngineOptions
from runtime.engines.vllm import engine as engine_module
from runtime.engines.vllm import exercise
from runtime.engines.vllm.arguments import ANY_GRAPHS, FEW_GRAPHS, FULL_GRAPHS, prepare_environment
from runtime.engines.vllm.engine import VllmEngine

LOOKS = round(exercise.SILENCE_S / exercise.LOOK_S)
MOST = round(exercise.PATIENCE_S / exercise.LOOK_S)


async def looked(speaking: list[bool], work: int, takes: float = 0.05) -> list[int]:
    """Return at which look each step was done, while requests run as told; nothing runs after that."""
    done: list[int] = []
    looks, now = 0, 0.0
    rest = asyncio.sleep

    async def sleep(seconds: float) -> None:
        await rest(0)

    def running() -> bool:
        nonlocal looks
        looks += 1
        return looks <= len(speaking) and speaking[looks - 1]

    async def step() -> int:
        nonlocal now
        done.append(looks)
        now += takes
        return work - len(done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exercise.asyncio, "sleep", sleep)
        await asyncio.wait_for(exercise.in_silence(step, running, lambda: now), 60)
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


def test_after_a_slow_one_steps_wait_for_silence() -> None:
    speaking = [True] * 4 * MOST
    assert asyncio.run(looked(speaking, 3, takes=7.0)) == [MOST, 4 * MOST + LOOKS, 4 * MOST + LOOKS + 1]


@pytest.mark.parametrize(("wanted", "told"), [(True, ANY_GRAPHS), (None, FULL_GRAPHS), (False, None)])
def test_the_engine_s_process_is_told(wanted: bool | None, told: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FEW_GRAPHS, "of an engine before it")
    prepare_environment(EngineOptions(graphs_after_readiness=wanted))
    assert os.environ.get(FEW_GRAPHS) == told


class OutOfMemory(Exception):
    """What a GPU may say."""


class Loaded:
    """An engine of vLLM's that has so many graphs left, and fails at the one that has a number."""

    errored = False

    def __init__(self, left: int, fails_at: int | None = None) -> None:
        self.left, self.fails_at = left, fails_at
        self.asked: list[str] = []

    async def collective_rpc(self, method: str) -> list[int]:
        self.asked.append(method)
        if self.left == self.fails_at:
            raise OutOfMemory("no memory is left")
        self.left -= 1
        return [max(self.left, -1)]


async def capture(llm: Loaded, monkeypatch: pytest.MonkeyPatch, *, shut_down: bool = False) -> VllmEngine:
    """Have an engine capture what is left."""
    monkeypatch.setattr(exercise, "SILENCE_S", 0.02)
    monkeypatch.setattr(exercise, "LOOK_S", 0.01)
    engine = VllmEngine(Path("nowhere"), EngineOptions())
    engine._llm = llm  # type: ignore[assignment]
    if shut_down:
        ask = llm.collective_rpc

        async def ended(method: str) -> list[int]:
            engine._llm = None
            return await ask(method)

        llm.collective_rpc = ended  # type: ignore[method-assign]
    await asyncio.wait_for(engine._capture_the_rest(llm), 60)  # type: ignore[arg-type]
    return engine


@pytest.mark.parametrize(
    ("left", "asked", "told"),
    [
        (3, 3, ["graphs: ready with a part of them; 3 sizes are captured from now on", "graphs: all are captured"]),
        (1, 1, ["graphs: ready with a part of them; 1 sizes are captured from now on", "graphs: all are captured"]),
        (0, 1, []),
    ],
)
async def test_what_is_left_is_captured_and_told(
    left: int, asked: int, told: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    llm = Loaded(left)
    await capture(llm, monkeypatch)
    assert llm.asked == ["next_graph"] * asked
    assert caplog.messages == told


async def test_a_capture_that_fails_is_told_as_what_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await capture(Loaded(3, fails_at=2), monkeypatch)
    [told] = caplog.messages
    assert "no memory is left" in told
    assert "GRAPHS_AFTER_READINESS=false" in told


async def test_at_a_shutdown_nothing_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    await capture(Loaded(3, fails_at=3), monkeypatch, shut_down=True)
    assert caplog.messages == []


async def test_while_a_request_runs_or_somebody_is_about_to_speak_nothing_is_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    async def in_silence(step: exercise.Step, running: exercise.Running) -> None:
        asked.append(running())
        engine._running.add("a reply")
        asked.append(running())
        engine._running.clear()
        engine._woken = time.monotonic()
        asked.append(running())

    engine = VllmEngine(Path("nowhere"), EngineOptions())
    monkeypatch.setattr(exercise, "in_silence", in_silence)
    await engine._capture_the_rest(Loaded(1))  # type: ignore[arg-type]
    assert asked == [False, True, True]


@pytest.mark.parametrize(
    ("wanted", "on_cpu", "seam", "captured"),
    [
        (None, False, True, True),
        (True, False, True, True),
        (False, False, True, False),
        (None, True, True, False),
        (None, False, False, False),
    ],
    ids=["unset", "asked for", "not wanted", "on a CPU", "with a vLLM that cannot be asked"],
)
async def test_a_start_goes_on_to_what_is_left_and_waits_for_none_of_it(
    wanted: bool | None, on_cpu: bool, seam: bool, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = Loaded(2)
    steps: list[exercise.Step] = []
    ended = asyncio.Event()

    async def in_silence(step: exercise.Step, running: exercise.Running) -> None:
        steps.append(step)
        while await step():
            pass
        ended.set()

    async def nothing(*given: object) -> None:
        return None

    monkeypatch.setattr(exercise, "in_silence", in_silence)
    monkeypatch.setattr(exercise, "prove", nothing)
    monkeypatch.setattr(engine_module.contract, "on_cpu", lambda: on_cpu)
    monkeypatch.setattr(engine_module.seams, "holds", lambda name: name == "later graphs" and seam)
    engine = VllmEngine(Path("nowhere"), EngineOptions(graphs_after_readiness=wanted))
    monkeypatch.setattr(engine, "_load_model", lambda: llm)
    await engine.start()
    assert llm.asked == []  # readiness waits for none
    if captured:
        await asyncio.wait_for(ended.wait(), 60)
    await asyncio.sleep(0)
    assert len(steps) == captured
    assert llm.asked == ["next_graph"] * (2 if captured else 0)
