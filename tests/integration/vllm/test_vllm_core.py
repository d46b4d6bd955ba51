"""What is added to vLLM's engine process, on vLLM's own step with a GPU that does as it is told."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import time
from collections import deque
from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.engines import EngineOptions
from runtime.engines.vllm import contract
from runtime.engines.vllm.arguments import prepare_environment

pytestmark = pytest.mark.engine

PATIENCE = 0.5


class Event:
    """As `torch.cuda.Event`: what is asked for arrives after so many looks, or when somebody waits for it."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def query(self) -> bool:
        self.looks -= 1
        return self.looks < 0


class Core:
    """As much of `EngineCore` as its step uses: each step gives every running request a token, in at most two batches.

    `log` tells in which order batches are launched and taken.
    """

    def __init__(self, event: str | None, looks: int = 0) -> None:
        self.event, self.looks = event, looks
        self.batch_queue: deque[Any] = deque(maxlen=2)
        self.batch_queue_size = 2
        self.is_ec_consumer, self.is_pooling_model = True, False
        self.log: list[str] = []
        self.new: list[str] = []
        self.running: list[str] = []
        self.steps = 0
        self.scheduler = SimpleNamespace()
        self.scheduler = Scheduler(self)
        self.model_executor = self
        self.log_error_detail = self.log_iteration_details = self.capture_iteration_details = lambda *_: nullcontext()
        self._process_aborts_queue = self._attach_iteration_details = lambda *_: None

    def _should_throttle_prefills(self) -> bool:
        return False

    def execute_model(self, batch: Any, non_block: bool) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(None)
        return done

    def sample_tokens(self, grammar: object, non_block: bool) -> Any:
        self.log.append(f"launch {self.steps}")
        future: Any = Future()
        future.set_result(self.steps)
        if self.event:
            future.async_output = SimpleNamespace(**{self.event: Event(self.looks)})
        return future


class Scheduler:
    def __init__(self, core: Core) -> None:
        self.core = core

    def has_requests(self) -> bool:
        return bool(self.core.new or self.core.running)

    def schedule(self, throttled: bool) -> Any:
        core = self.core
        core.steps += 1
        batch = SimpleNamespace(
            scheduled_new_reqs=core.new, total_num_scheduled_tokens=1, pending_structured_output_tokens=False
        )
        core.running, core.new = core.running + core.new, []
        return batch

    def get_grammar_bitmask(self, batch: object) -> None:
        return None

    def update_from_output(self, batch: object, output: int) -> dict[int, str]:
        self.core.log.append(f"take {output}")
        return {0: f"tokens of {output}"}


@pytest.fixture(scope="module")
def module() -> Any:
    prepare_environment(EngineOptions())
    from runtime.engines.vllm import core as vllm_core

    return vllm_core


def test_an_engines_process_looks_for_garbage_though_the_server_does_not_while_it_loads(module: Any) -> None:
    gc.disable()
    try:
        module._stand_alone()
        assert gc.isenabled()
    finally:
        gc.enable()


@pytest.fixture(autouse=True)
def patient(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_TOKEN_WAIT_S", PATIENCE)
    # A seam that a test gives up is there again for the next.
    monkeypatch.setattr(contract.seams, "_wrong", dict(contract.seams._wrong))


def run(core: Core, steps: int) -> list[Any]:
    from vllm.v1.engine.core import EngineCore

    return [EngineCore.step_with_batch_queue(core) for _ in range(steps)]


@pytest.mark.parametrize("event", ["copy_event", "async_copy_ready_event"])
@pytest.mark.parametrize("looks", [0, 5])
def test_out_of_silence_the_first_token_is_told_before_the_second_is_prepared(
    module: Any, event: str, looks: int
) -> None:
    core = Core(event, looks)
    core.new = ["a"]
    assert run(core, 1) == [({0: "tokens of 1"}, True)]
    assert core.log == ["launch 1", "take 1"]
    # From then on the GPU has its next batch before the last one's tokens are taken.
    assert run(core, 3) == [(None, True), ({0: "tokens of 2"}, True), ({0: "tokens of 3"}, True)]
    assert core.log[2:] == ["launch 2", "launch 3", "take 2", "launch 4", "take 3"]


def test_a_request_that_joins_others_changes_nothing(module: Any) -> None:
    core = Core("copy_event")
    core.new = ["a"]
    run(core, 3)
    core.new = ["b"]
    del core.log[:]
    run(core, 2)
    assert core.log == ["launch 4", "take 3", "launch 5", "take 4"]


@pytest.mark.parametrize("event", [None, "another_event", "copy_event"])
def test_where_the_first_token_does_not_come_vllm_does_what_it_did(
    module: Any, event: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_TOKEN_WAIT_S", 0.0)
    core = Core(event, looks=1000)
    core.new = ["a"]
    assert run(core, 2) == [(None, True), ({0: "tokens of 1"}, True)]
    assert core.log == ["launch 1", "launch 2", "take 1"]
    assert contract.seams.holds("first token") == (event != "another_event")


def test_a_failure_on_the_gpu_is_raised_and_the_scheduler_has_its_own_mind_again(module: Any) -> None:
    core = Core("copy_event")
    core.new = ["a"]

    def fail(grammar: object, non_block: bool) -> Any:
        future: Any = Future()
        future.set_exception(RuntimeError("CUDA error"))
        future.async_output = SimpleNamespace(copy_event=Event(0))
        return future

    core.sample_tokens = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="CUDA error"):
        run(core, 1)
    assert core.scheduler.has_requests()


def _stubborn(ready: Any) -> None:
    """A rank that waits for another in a layer, deaf to everything but SIGKILL."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    time.sleep(60)


def _willing(ready: Any) -> None:
    ready.set()


@pytest.mark.parametrize(("patience", "kinds"), [(0.0, "ss"), (0.2, "s"), (30.0, "ww"), (5.0, "ws"), (0.0, "")])
def test_ranks_that_do_not_end_are_killed_when_their_time_is_over(module: Any, patience: float, kinds: str) -> None:
    context = multiprocessing.get_context("fork")
    ready = [context.Event() for _ in kinds]
    targets = {"s": _stubborn, "w": _willing}
    processes = [context.Process(target=targets[kind], args=(event,)) for kind, event in zip(kinds, ready, strict=True)]
    for process in processes:
        process.start()
    assert all(event.wait(30) for event in ready)
    module.end_ranks(processes, patience)
    for process in processes:
        process.join(60)  # one that was killed may wait for a processor
    assert not [process for process in processes if process.is_alive()]
    if "s" in kinds:
        assert processes[kinds.index("s")].exitcode == -signal.SIGKILL
    if patience and "w" in kinds:
        assert processes[kinds.index("w")].exitcode == 0


@pytest.mark.parametrize(("lost", "patience"), [(True, 0.0), (False, 3.0)])
def test_after_a_rank_s_death_the_others_are_not_waited_for(
    module: Any, lost: bool, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[list[Any], float]] = []
    monkeypatch.setattr(module, "end_ranks", lambda processes, seconds: told.append((processes, seconds)))
    executor = object.__new__(module.ObservedMultiprocExecutor)
    executor.is_failed = lost
    executor._ensure_worker_termination(["a rank"])
    assert told == [(["a rank"], patience)]


@pytest.mark.parametrize(
    ("phase", "arguments"),
    [("determine_available_memory", ()), ("initialize_from_config", ([],)), ("compile_or_warm_up_model", ())],
)
def test_ranks_end_where_a_phase_of_the_start_fails(phase: str, arguments: tuple[Any, ...]) -> None:
    from runtime.engines.vllm import core

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    told: list[str] = []
    executor = object.__new__(core.ObservedMultiprocExecutor)
    executor.collective_rpc = fail
    executor.shutdown = lambda: told.append("end")
    with pytest.raises(RuntimeError, match="out of memory"):
        getattr(executor, phase)(*arguments)
    assert told == ["end"]


class Refused(Exception):
    """What vLLM may say."""


@pytest.mark.parametrize(
    ("wanted", "plan", "refuses", "order"),
    [
        (False, "0", False, ["all"]),
        (True, "0", False, [("few_graphs_first", (True,)), "all"]),
        (None, "0", False, [("few_graphs_first", (False,)), "all"]),
        (True, "0", True, [("few_graphs_first", (True,)), "all"]),
        (True, "1", False, ["all"]),
    ],
    ids=["as ever", "a few first", "where it was proven", "vLLM is another one", "vLLM plans by itself"],
)
def test_graphs_are_left_for_later_where_the_server_asks_for_it(
    wanted: bool | None, plan: str, refuses: bool, order: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_STARTUP_PLAN", plan)
    prepare_environment(EngineOptions(graphs_after_readiness=wanted))
    from runtime.engines.vllm import core

    asked: list[object] = []

    def ask(method: str, args: tuple[bool, ...]) -> list[bool]:
        asked.append((method, args))
        if refuses:
            raise Refused
        return [True]

    executor: Any = object.__new__(core.ObservedUniProcExecutor)
    executor.collective_rpc = ask
    given_up: list[str] = []
    monkeypatch.setattr(contract.seams, "give_up", lambda name, reason: given_up.append(name))
    monkeypatch.setattr(
        core.UniProcExecutor, "compile_or_warm_up_model", lambda self: asked.append("all"), raising=False
    )
    executor.compile_or_warm_up_model()
    assert asked == order
    assert given_up == (["later graphs"] if refuses else [])
    prepare_environment(EngineOptions())
