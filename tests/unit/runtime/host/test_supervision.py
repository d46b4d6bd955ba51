"""Background work goes on, whatever is thrown into it."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from runtime.host import supervision
from runtime.host.supervision import Background, StepFailedError, attempt, beside, repeat, wait_after, watch
from tests.harness.waiting import eventually

ODD = (RuntimeError("odd"), KeyError(1), AssertionError(), asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt())
RUNTIME = Path(supervision.__file__).parents[1]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_WAIT_S", 0.0)


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
async def test_a_loop_goes_on_after_whatever_a_step_raises(error: BaseException) -> None:
    steps = 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        if steps <= 3:
            raise error

    with capture_logs() as told:
        task = asyncio.create_task(repeat("odd", step, 0))
        await eventually(lambda: steps > 5)
        await ended(task)
    assert [(entry["event"], entry["failures"]) for entry in told] == [
        ("background_failed", 1),
        ("background_failed", 2),
        ("background_recovered", 3),
    ]


async def test_a_step_that_hangs_is_given_up_and_taken_again() -> None:
    steps = 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        await asyncio.sleep(3600)

    task = asyncio.create_task(repeat("hangs", step, 0, timeout=0.001))
    await eventually(lambda: steps > 2)
    await ended(task)


async def test_the_end_of_a_loop_takes_its_step_with_it() -> None:
    begun, gone = asyncio.Event(), asyncio.Event()

    async def step() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            gone.set()

    task = asyncio.create_task(repeat("long", step, 0))
    await begun.wait()
    await ended(task)
    assert gone.is_set()


@given(st.integers(0, 10**6), st.floats(0, 1e6))
def test_the_wait_grows_and_has_an_end(failures: int, longest: float) -> None:
    assert 0 <= wait_after(failures, longest) <= wait_after(failures + 1, longest) <= longest


async def test_a_failure_for_ever_is_told_ever_more_rarely() -> None:
    steps = 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        raise RuntimeError

    with capture_logs() as told:
        task = asyncio.create_task(repeat("broken", step, 0))
        await eventually(lambda: steps > 100)
        await ended(task)
    assert len(told) < 10


async def test_a_task_that_nobody_awaits_has_its_failure_told() -> None:
    async def fail() -> None:
        raise LookupError

    background = Background()
    with capture_logs() as told:
        background.spawn("spawned", fail())
        watched = watch("watched", asyncio.create_task(fail()))
        await asyncio.wait((watched,))
        await eventually(lambda: len(told) == 2)
    await background.cancel()
    assert sorted(entry["task"] for entry in told) == ["spawned", "watched"]


class Step:
    """A step that ends when it is told to, in a way."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.go_on, self.cancelled = error, asyncio.Event(), False

    async def __call__(self) -> str:
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return "done"


@pytest.mark.parametrize("first", ["aside", "work"])
@pytest.mark.parametrize("aside", [None, ValueError("aside"), SystemExit(3)])
@pytest.mark.parametrize("work", [None, LookupError("work"), SystemExit(4)])
async def test_what_is_done_aside_counts_more_whichever_is_through_first(
    first: str, aside: BaseException | None, work: BaseException | None
) -> None:
    steps, left = {"aside": Step(aside), "work": Step(work)}, []
    both = asyncio.ensure_future(beside(steps["aside"], steps["work"], lambda: left.append(True)))
    await asyncio.sleep(0)
    steps[first].go_on.set()
    if first == "work":
        await eventually(lambda: left == [True])
    elif aside is None:
        await asyncio.sleep(0.01)
        assert not both.done()
    for step in steps.values():
        step.go_on.set()
    counts = aside or work
    if counts is None:
        assert await both == ("done", "done")
    else:
        told = {SystemExit: StepFailedError}.get(type(counts), type(counts))
        with pytest.raises(told, match=str(counts)):
            await both
    assert left == [True] * (first == "work")


async def test_work_is_given_up_when_what_is_done_aside_fails_or_nobody_waits() -> None:
    aside, work = Step(ValueError("aside")), Step()
    both = asyncio.ensure_future(beside(aside, work, lambda: None))
    await asyncio.sleep(0.01)
    aside.go_on.set()
    with pytest.raises(ValueError, match="aside"):
        await both
    assert work.cancelled
    aside, work = Step(), Step()
    both = asyncio.ensure_future(beside(aside, work, lambda: None))
    await asyncio.sleep(0.01)
    both.cancel()
    await asyncio.wait((both,))
    assert aside.cancelled
    assert work.cancelled


def test_an_attempt_says_whether_it_succeeded() -> None:
    assert attempt("fine", lambda: None)
    with capture_logs() as told:
        assert not attempt("wrong", lambda: 1 // 0)
    assert told[0]["task"] == "wrong"


# Where a task or thread may be made without `watch`, and what looks after it there.
LOOKED_AFTER = {
    ("host/supervision.py", "spawn"): "is what watches",
    ("host/eager_tasks.py", "start"): "its makers await it",
    ("turns/turn.py", "begin"): "the turn's end looks at what it raised",
    ("server/process.py", "_serve"): "awaited",
    ("server/front/http.py", "_begin"): "uvicorn's request catches everything, and answers",
    ("server/process.py", "exit_within"): "ends the process in a `finally`",
    ("deployment/classifier/tool_classifier.py", "start"): "its loop catches everything",
    ("artifact/blobs.py", "watch_progress"): "each of its steps is an `attempt`",
    ("host/log_writer.py", "_start"): "its loop catches everything",
    ("host/log_outputs.py", "_compress_later"): "fails by itself",
    ("engines/vllm/context.py", "open_beside"): "PyTorch says what it fails at",
    ("artifact/files/hasher.py", "main"): "what it has not written a line of is not proven",
}


def made(path: Path) -> Iterator[tuple[str, str]]:
    """Functions that make a task or a thread which nothing watches."""
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        watched = {
            id(inner)
            for call in ast.walk(function)
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "watch"
            for inner in ast.walk(call)
        }
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and id(call) not in watched:
                name = ast.unparse(call.func)
                if name.endswith((".create_task", "threading.Thread", "threading.Timer")):
                    yield path.relative_to(RUNTIME).as_posix(), function.name


@pytest.mark.house
def test_nothing_runs_in_the_background_unwatched() -> None:
    unwatched = {place for path in RUNTIME.rglob("*.py") for place in made(path)}
    assert unwatched <= LOOKED_AFTER.keys()
