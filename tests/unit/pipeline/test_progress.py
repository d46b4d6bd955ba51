"""What long work says: lines in a log, one live line on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline import progress
from pipeline.progress import LiveProgress, PlainProgress
from pipeline.publish.reports.printing import duration


def test_a_log_gets_a_line_a_step_with_the_time() -> None:
    stream = io.StringIO()
    with PlainProgress(stream) as steps:
        steps.step("quantizing")
        steps.advance(0.5)
        steps.step("writing")
    lines = stream.getvalue().splitlines()
    assert [line.partition("] ")[2] for line in lines] == ["quantizing", "writing"]
    assert all(line.startswith("[") and " s] " in line for line in lines)


def test_a_log_gets_a_fraction_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stream = io.StringIO()
    steps = PlainProgress(stream)
    steps.step("quantizing")
    for second in range(25):
        now = float(second)
        steps.advance(second / 25)
    assert [line.partition("] ")[2] for line in stream.getvalue().splitlines()] == [
        "quantizing",
        "quantizing: 40%",
        "quantizing: 80%",
    ]


def test_a_terminal_keeps_finished_steps_and_shows_the_present_one() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    with LiveProgress(console) as steps:
        steps.step("reading [brackets] as they are")
        steps.advance(0.5)
        steps.step("writing")
    shown = stream.getvalue()
    assert "  reading [brackets] as they are" in shown
    assert "writing" in shown


def test_a_pipe_is_no_terminal() -> None:
    assert isinstance(progress.for_terminal(), PlainProgress)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (59, "59 s"), (75, "1 min 15 s"), (4000, "1 h 6 min")]
)
def test_times_are_written_for_people(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
