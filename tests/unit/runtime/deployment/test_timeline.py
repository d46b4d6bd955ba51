"""A start's phases: they are all of its time, and no second is in two of them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.deployment.timeline import Timeline, process_began

TIMES = st.floats(-1e6, 1e6)
MARKS = st.lists(st.tuples(TIMES, st.sampled_from("abcd")))


@given(TIMES, MARKS, MARKS, TIMES)
def test_phases_are_all_of_the_time_and_none_is_negative(
    began: float, own: list[tuple[float, str]], others: list[tuple[float, str]], end: float
) -> None:
    line = Timeline(began, "first")
    for at, name in own:
        line.enter(name, at)
    line.splice(others)
    line.end(end)
    took = line.phases()
    assert all(seconds >= 0 for seconds in took.values())
    assert sum(took.values()) == pytest.approx(max(0.0, end - began), abs=1e-6)
    assert took.keys() == {"first", *(name for _, name in own), *(name for _, name in others)}


def test_what_another_process_noted_stands_where_it_was() -> None:
    line = Timeline(10.0, "process")
    line.enter("spawn", 12.0)
    line.enter("exercise", 20.0)
    line.splice([(17.0, "cache"), (13.0, "weights")])
    line.end(21.0)
    assert list(line.phases().items()) == [
        ("process", 2.0),
        ("spawn", 1.0),
        ("weights", 4.0),
        ("cache", 3.0),
        ("exercise", 1.0),
    ]


def test_after_its_end_nothing_changes_it() -> None:
    line = Timeline(0.0, "a")
    line.end(2.0)
    line.enter("b")
    line.splice([(1.0, "c")])
    line.end(9.0)
    assert line.phases() == {"a": 2.0}


def test_a_process_began_before_now() -> None:
    assert 0 <= time.monotonic() - process_began() < 86_400
