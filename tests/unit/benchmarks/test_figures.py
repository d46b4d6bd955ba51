"""What a benchmark makes of its turns."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from tests.benchmarks.load import Target, _answers, run_load, siblings, split_cpus
from tests.benchmarks.work import Sample, figures
from tests.harness.server import free_port

# Two streams of two turns, a token a second; the second begins two seconds later.
SPREAD = [
    Sample(0, 1, 5, 4, stream=0),
    Sample(5, 6, 10, 4, stream=0),
    Sample(2, 3, 7, 4, stream=1),
    Sample(7, 8, 12, 4, stream=1),
]


def test_the_whole_time_counts_from_the_first_start_to_the_last_end() -> None:
    found = figures(2, SPREAD)
    assert (found.turns, found.tokens) == (4, 16)
    assert found.tokens_per_s == pytest.approx(16 / 12)


def test_the_steady_time_is_the_one_in_which_every_stream_speaks() -> None:
    found = figures(2, SPREAD, steady=True)
    # From 3 to 10: 2 and 4 tokens of the first stream, 4 and 2 of the second; the turns that began at 5 and 7.
    assert found.tokens_per_s == pytest.approx(12 / 7)
    assert found.turns == 2
    assert found.ttft_p50 == 1


def test_streams_that_never_speak_at_once_have_no_steady_time() -> None:
    with pytest.raises(ValueError, match="give the streams more turns"):
        figures(2, [Sample(0, 1, 2, 1, stream=0), Sample(5, 6, 7, 1, stream=1)], steady=True)


def test_a_load_that_cannot_run_ends_at_once() -> None:
    with pytest.raises(RuntimeError, match="the load failed"):
        run_load(Target("yap", f"ws://127.0.0.1:{free_port()}/ws", "key"), 2, 1, 2)


def test_a_process_that_is_gone_without_a_word_ends_the_load() -> None:
    context = multiprocessing.get_context("spawn")
    gone = context.Process(target=os._exit, args=(3,))
    gone.start()
    with pytest.raises(RuntimeError, match="exited with 3"):
        _answers([gone], context.Queue())


@pytest.mark.parametrize(
    ("cpus", "most", "threads", "listening"),
    [
        (16, None, 1, {12, 13, 14, 15}),
        (16, None, 2, {6, 7, 14, 15}),  # the threads of a core are 8 apart
        (16, 3, 2, {7, 15}),  # whole cores only
        (8, None, 4, set()),  # no whole core is within a quarter
        (16, 0, 1, set()),
        (4, None, 1, set()),
        (4, 1, 1, {3}),  # who asks for it gets it
        (4, 9, 1, {1, 2, 3}),  # but a contender needs one
    ],
)
def test_the_load_gets_whole_cores_of_its_own_where_there_are_many(
    cpus: int, most: int | None, threads: int, listening: set[int]
) -> None:
    def core_of(cpu: int) -> frozenset[int]:
        return frozenset(range(cpu % (cpus // threads), cpus, cpus // threads))

    everything = set(range(cpus))
    serving, found = split_cpus(everything, most, core_of)
    assert found == listening
    assert serving == everything - listening


def test_a_cpu_is_a_thread_of_its_own_core() -> None:
    assert all(cpu in siblings(cpu) for cpu in os.sched_getaffinity(0))
    assert siblings(10_000) == {10_000}
