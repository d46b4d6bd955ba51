"""The threads of a forked worker: as many as vLLM gave it cores, each on one, whoever was forked from."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.vllm import contract, threads
from runtime.engines.vllm.contract import life, table

ROOT = Path(__file__).parents[5]

lists = st.lists(st.integers(0, 500), min_size=1, max_size=20, unique=True)


@given(lists, lists)
def test_cores_are_read_as_vllm_writes_them_for_either_openmp(cores: list[int], others: list[int]) -> None:
    places = {"OMP_PLACES": f"{{{','.join(map(str, cores))}}}", "OMP_PROC_BIND": "true", "OMP_NUM_THREADS": "7"}
    gnu = {"GOMP_CPU_AFFINITY": " ".join(map(str, cores)), "OMP_NUM_THREADS": "7"}
    assert threads.cores_of(places) == threads.cores_of(gnu) == cores
    # GNU's own variable is the one that GNU's OpenMP obeys where both are set.
    assert threads.cores_of(gnu | {"OMP_PLACES": f"{{{','.join(map(str, others))}}}"}) == cores


def test_a_worker_that_is_bound_to_nothing_is_left_alone() -> None:
    started: list[int] = []
    assert threads.bind(threads.cores_of({"OMP_NUM_THREADS": "4"}), started.append, started.append) == []
    assert not started


def in_child(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("count", [1, 2])
def test_each_thread_has_its_core_and_those_that_were_there_keep_theirs(count: int) -> None:
    """In a process of its own: binding is for good."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        pytest.skip("fewer cores")
    chosen = cores[-count:]
    script = f"""
import os, threading
from runtime.engines.vllm.threads import bind
over = threading.Event()
old = threading.Thread(target=over.wait); old.start()
new, idle = [], []
def say(count):  # as torch does
    idle.extend(threading.Thread(target=over.wait) for _ in range(count))
    for thread in idle: thread.start()
def start(count):
    new.extend(threading.Thread(target=over.wait) for _ in range(count - 1))
    for thread in new: thread.start()
bound = bind({chosen!r}, say, start)
where = [sorted(os.sched_getaffinity(task)) for task in (0, *(thread.native_id for thread in new))]
assert where == [[core] for core in {chosen!r}], where
assert len(bound) == {count}
for thread in (old, *idle): assert os.sched_getaffinity(thread.native_id) == set({cores!r})
over.set()
print("bound")
"""
    assert in_child(script) == "bound"


def test_the_threads_that_are_bound_are_those_that_compute() -> None:
    """torch starts others too, when it is told how many there are. The process is not this one: binding is for good."""
    pytest.importorskip("torch")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    script = """
import os, time, torch
from runtime.engines.vllm import contract
from runtime.engines.vllm.threads import bind
bound = bind(sorted(os.sched_getaffinity(0)), contract.say_threads, contract.start_threads)
def ticks(task):
    with open(f"/proc/self/task/{task or os.getpid()}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[11])
numbers, until = torch.ones(4 << 20), time.monotonic() + 60
while not all(ticks(task) for task, _ in bound) and time.monotonic() < until: numbers.mul_(1.0)
print(len(bound) == len(os.sched_getaffinity(os.getppid())), all(ticks(task) for task, _ in bound))
"""
    assert in_child(script).split() == ["True", "True"]


def test_a_core_that_this_process_may_not_use_is_no_failure() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    try:
        bound = threads.bind([100_000, 100_001], lambda count: None, lambda count: thread.start())
    finally:
        over.set()
        thread.join()
    assert bound == []
    assert os.sched_getaffinity(0)


def tasks_of(folder: Path, states: dict[str, str]) -> Path:
    """A process's threads as the system tells them: by name, each with a state."""
    for number, (name, state) in enumerate(states.items(), 1):
        (folder / str(number)).mkdir()
        (folder / str(number) / "stat").write_text(f"{number} ({name}) {state} 1 1 1 0 -1\n")
    return folder


@given(st.dictionaries(st.text("R)( x\n", max_size=6), st.sampled_from("RSDTtI"), max_size=5))
def test_a_process_is_quiet_where_every_other_thread_sleeps_whatever_it_is_called(
    tmp_path_factory: pytest.TempPathFactory, states: dict[str, str]
) -> None:
    found = threads.quiet(0, tasks_of(tmp_path_factory.mktemp("tasks"), states))
    assert found == ("R" not in states.values())


def test_the_thread_that_asks_does_not_count_nor_one_that_has_ended(tmp_path: Path) -> None:
    own = tmp_path / str(threading.get_native_id())
    own.mkdir()
    (own / "stat").write_text("1 (x) R 1")
    (tmp_path / "1").mkdir()
    assert threads.quiet(0, tmp_path)
    assert not threads.quiet(0, tmp_path / "elsewhere"), "where the system does not tell"


def test_a_process_in_which_a_thread_computes_is_not_quiet() -> None:
    """In a process of its own: one call that runs for minutes, without Python's lock."""
    script = """
import hashlib, os, threading
from runtime.engines.vllm.threads import quiet
asleep = threading.Event()
threading.Thread(target=asleep.wait, daemon=True).start()
print(quiet(30))
threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 2**30), daemon=True).start()
print(quiet(0.2), flush=True)
os._exit(0)
"""
    assert in_child(script).split() == ["True", "False"]


class Arguments:
    """vLLM's arguments, as far as forking asks for them; like its platform for CPUs, they say "spawn"."""

    tensor_parallel_size = pipeline_parallel_size = 1
    worker_extension_cls = "a.module.not.imported.Worker"

    def create_engine_config(self, usage: object) -> object:
        os.environ[table.METHOD] = "spawn"
        return self


@pytest.mark.engine
@pytest.mark.parametrize(
    ("chosen", "on_cpu", "quiet", "method"),
    [
        (None, True, True, "fork"),
        ("fork", True, True, "fork"),
        (None, True, False, "spawn"),
        ("fork", True, False, "spawn"),
        ("spawn", True, True, "spawn"),
        (None, False, True, "spawn"),
    ],
)
def test_an_engine_is_forked_where_nothing_computes_and_nobody_said_otherwise(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, on_cpu: bool, quiet: bool, method: str
) -> None:
    executor = pytest.importorskip("vllm.v1.executor").Executor
    monkeypatch.setattr(executor, "get_class", lambda config: config)
    monkeypatch.setattr(life, "on_cpu", lambda: on_cpu)
    monkeypatch.setattr(life, "PRELOADED", "")
    monkeypatch.setattr(threads, "quiet", lambda: quiet)
    monkeypatch.setattr(life, "llm_class", lambda: lambda *_, **__: os.environ[table.METHOD])
    monkeypatch.setenv(table.METHOD, chosen or "")
    if chosen is None:
        monkeypatch.delenv(table.METHOD)
    assert contract.start(Arguments(), lambda found: found) == method  # type: ignore[arg-type]
    assert os.environ.get(table.METHOD) == chosen, "the next engine is asked for as this one was"


def test_a_child_of_a_thread_that_computed_nothing_can_compute() -> None:
    """What forking an engine rests on: OpenMP's threads belong to the thread that started them."""
    pytest.importorskip("torch")
    script = """
import multiprocessing, threading, torch
def compute(count):
    torch.set_num_threads(count)
    assert float(torch.ones(4 << 20).add_(1).sum()) == 2.0 * (4 << 20)
def fork():
    child = multiprocessing.get_context("fork").Process(target=compute, args=(2,))
    child.start(); child.join(60); print(child.exitcode); child.kill()
compute(2)  # in this thread, as a classifier may have
thread = threading.Thread(target=fork); thread.start(); thread.join()
"""
    assert in_child(script) == "0"
