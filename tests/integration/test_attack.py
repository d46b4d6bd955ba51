"""The short form of `python -m tests.attack`, and that its bounds can be broken."""

from __future__ import annotations

import socket
import subprocess
import sys
from os import getpid

import pytest

from tests.attack.__main__ import LEAST_S, MEMORY_MIB, NEW_SERIES, STALL_S, Schedule, report
from tests.attack.clients import attacks
from tests.attack.observer import Noticed, cpu_seconds, listener_of, percentile


def order(name: str) -> tuple[bool, str]:
    return attacks()[name].unlimited, name


def test_no_client_hurts_another() -> None:
    result = subprocess.run(
        # In two seconds the slowest of a few hundred pings counts, and others may have the processor: held here is that
        # nobody is shut out, nothing is kept and nothing stands still.
        [sys.executable, "-m", "tests.attack", "--seconds", str(2 * len(attacks())), "--stall", "5"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all bounds kept" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines() if "/" in line] == sorted(attacks(), key=order)


def noticed(pings: float = 0.001, work: float = 0.001, calm: float = 0.001, deaf: int = 0, peak: float = 60) -> Noticed:
    return Noticed([pings] * 100, [work] * 100, [calm] * 100, checks=10, deaf=deaf, peak=peak)


@pytest.mark.parametrize(
    ("found", "after", "back", "failed", "kept"),
    [
        (noticed(), 60, 0.0, False, True),
        (noticed(work=STALL_S + 0.01, pings=STALL_S + 0.01, calm=0.02), 60, 0.0, False, False),
        (noticed(pings=STALL_S + 0.02), 60, 0.0, False, False),
        (noticed(pings=STALL_S + 0.02, calm=0.02), 60, 0.0, False, True),
        (noticed(deaf=1), 60, 0.0, False, False),
        (noticed(peak=60 + MEMORY_MIB + 1), 60, 0.0, False, False),
        (noticed(), 60 + MEMORY_MIB + 1, 0.0, False, False),
        (noticed(), 60, float("inf"), False, False),
        (noticed(), 60, 0.0, True, False),
    ],
)
def test_each_bound_can_be_broken(found: Noticed, after: float, back: float, failed: bool, kept: bool) -> None:
    assert report("x", found, 60, after, back, failed=failed) == kept


def test_a_refused_turn_and_a_flood_of_figures_break_bounds() -> None:
    assert report("x", noticed(), 60, 60, 0.0, failed=False, grown=NEW_SERIES)
    assert not report("x", noticed(), 60, 60, 0.0, failed=False, grown=NEW_SERIES + 1)
    refused = noticed()
    refused.refused.append("server_at_capacity")
    assert not report("x", refused, 60, 60, 0.0, failed=False)


def test_the_figures_are_what_they_say() -> None:
    assert percentile([float(value) for value in range(1, 1001)], 0.999) == 1000
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert listener_of(listener.getsockname()[1]) == getpid()
    before = cpu_seconds(getpid())
    sum(range(100_000))
    assert 0 < cpu_seconds(getpid()) - before < 5


def test_it_goes_nowhere_but_to_this_machine() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.attack", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "--host" not in result.stdout
    assert "--url" not in result.stdout


@pytest.mark.parametrize("on_top", [0.0, 0.5, 3.0])
def test_all_attacks_together_take_the_time_that_they_were_given(on_top: float) -> None:
    now, attacks_left = 100.0, 12
    schedule = Schedule(attacks_left, 50.0, lambda: now)
    shares = []
    for _ in range(attacks_left):
        shares.append(schedule.begin())
        now += shares[-1] + on_top
        schedule.end()
    assert min(shares) >= LEAST_S
    assert now == pytest.approx(150.0, abs=max(1.0, on_top * 1.1))
    assert max(shares[1:]) < 1.6 * min(shares)
