"""Open files: raised as far as they go, and divided so that the slots always have theirs."""

from __future__ import annotations

import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.host import descriptors
from runtime.host.descriptors import BACKLOG, ENOUGH, FEWEST_UNADMITTED, RESERVED, OpenFiles, raise_limit, share


class Limits:
    """RLIMIT_NOFILE as a kernel keeps it."""

    def __init__(self, soft: int, hard: int, *, refuses: bool = False) -> None:
        self.soft, self.hard, self.refuses = soft, hard, refuses

    def get(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.soft, self.hard

    def set(self, which: int, limits: tuple[int, int]) -> None:
        allowed = float("inf") if self.hard == resource.RLIM_INFINITY else self.hard
        if self.refuses or limits[0] > allowed or limits[1] != self.hard:
            raise ValueError("not allowed to raise maximum limit")
        self.soft = limits[0]


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (1024, 20_000, OpenFiles(20_000, 1024)),
        (1024, 1024, OpenFiles(1024, 1024)),
        (1024, 1_048_576, OpenFiles(ENOUGH, 1024)),
        (200_000, 1_048_576, OpenFiles(200_000, 200_000)),
        (1024, resource.RLIM_INFINITY, OpenFiles(ENOUGH, 1024)),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, OpenFiles(ENOUGH, ENOUGH)),
    ],
)
def test_the_soft_limit_is_raised_and_never_lowered(
    soft: int, hard: int, expected: OpenFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(soft, hard)
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", limits.set)
    assert raise_limit() == expected
    assert descriptors.limit() == expected.limit


def test_a_sandbox_that_forbids_it_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(1024, 20_000, refuses=True)
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", limits.set)
    assert raise_limit() == OpenFiles(1024, 1024)


@given(limit=st.integers(1, 70_000), slots=st.integers(1, 70_000), wanted=st.integers(1, 70_000))
def test_slots_and_reserve_have_their_descriptors_whatever_knocks(limit: int, slots: int, wanted: int) -> None:
    try:
        shares = share(limit, slots, wanted)
    except ValueError as error:
        assert limit < RESERVED + slots + 2 * FEWEST_UNADMITTED
        assert f"found {limit}" in str(error)  # noqa: PT017
        return
    assert slots + RESERVED + shares.unadmitted + shares.backlog <= limit
    assert min(wanted, FEWEST_UNADMITTED) <= shares.unadmitted <= wanted
    assert FEWEST_UNADMITTED <= shares.backlog <= BACKLOG
