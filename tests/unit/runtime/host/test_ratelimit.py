"""Sliding windows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.host.ratelimit import SlidingWindow
from tests.harness.clock import Clock


@given(st.integers(1, 5), st.lists(st.integers(0, 16), max_size=60))
def test_no_window_ever_holds_more_than_the_limit_and_retry_in_is_true(limit: int, quarters: list[int]) -> None:
    clock = Clock()
    window = SlidingWindow(limit, 10, clock)
    taken: list[float] = []
    for quarter in quarters:
        clock.now += quarter / 4
        retry = window.take()
        recent = [when for when in taken if when > clock.now - 10]
        assert (retry == 0) == (len(recent) < limit)
        if retry == 0:
            taken.append(clock.now)
        else:
            assert recent[0] + 10 <= clock.now + retry < recent[0] + 11


def test_zero_means_no_limit() -> None:
    window = SlidingWindow(0, 1)
    assert all(window.take() == 0 for _ in range(1000))
