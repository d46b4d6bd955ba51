"""Seams that are broken: what is required is refused in one line, what is not is done without."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from runtime.engines import EngineDeadError, EngineOptions, EngineVersionError, Load
from runtime.engines.vllm import contract, engine, exercise
from runtime.engines.vllm.contract import life
from runtime.engines.vllm.seams import Need, Seam, Seams, read_need, unmet

PACKAGE = "invented"

WORKING = Seam("working", "server", (f"{PACKAGE}:Thing.act(_, word=_)",), "nothing")
OPTIONAL = Seam("optional", "server", (f"{PACKAGE}:Thing.act(_, colour=_)",), "some speed")
REQUIRED = Seam("required", "server", (f"{PACKAGE}:Thing.missing",), "everything", required=True)


class Thing:
    declared: int

    def __init__(self, size: int) -> None:
        self.size = size
        self.shape, self.colour = size, "red"

    def act(self, what: int, *, word: str = "") -> str:
        return "said" if what.numerator else self.act.__name__

    @staticmethod
    def plain(one: int) -> None: ...

    @classmethod
    def made(cls, one: int) -> None: ...

    @property
    def seen(self) -> int:
        return 1


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(PACKAGE)
    vars(module).update(Thing=Thing, table={"KEY": 1}, __version__="9.9.9")
    monkeypatch.setitem(sys.modules, PACKAGE, module)


def seams(*table: Seam) -> Seams:
    return Seams(PACKAGE, table, ("1.0", "2.0"))


@pytest.mark.parametrize(
    "need",
    [
        "Thing", "Thing(_)", "Thing(size=_)", "Thing.declared", "Thing.size", "Thing.shape", "Thing.colour",
        "Thing.seen", "Thing.act(_)", "Thing.act(_, word=_)", "Thing.plain(_)", "Thing.made(_)", "Thing.act 'said'",
        "table[KEY]",
    ],
)  # fmt: skip
def test_what_is_there_is_met(need: str) -> None:
    assert unmet(read_need(f"{PACKAGE}:{need}")) is None


@pytest.mark.parametrize(
    "need",
    [
        "Thing()", "Thing(_, _)", "Thing(length=_)", "Thing.weight", "Thing.seen()", "Thing.act()", "Thing.act(_, _)",
        "Thing.act(_, colour=_)", "Thing.plain()", "Thing.made(_, _)", "Thing.act 'sang'", "table[LOCK]", "Other",
        "Other.act(_)", "Thing.numerator", "Thing.declared()",
    ],
)  # fmt: skip
def test_what_is_not_there_is_told(need: str) -> None:
    told = unmet(read_need(f"{PACKAGE}:{need}"))
    assert told
    assert told.startswith(f"expected {PACKAGE}:")


def test_a_module_that_cannot_be_imported_has_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crooked.py").write_text("raise OSError('no library')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "no library" in (unmet(Need("crooked", "Thing")) or "")


@pytest.mark.parametrize("need", ["module", "module:", "module:Class.method(", "module:Class['key']", "module:a b"])
def test_a_need_that_cannot_be_read_is_an_error(need: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        read_need(need)


def test_all_well_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    table = seams(WORKING)
    table.check()
    assert table.holds("working")
    assert not caplog.records


def test_a_broken_required_seam_is_one_line_with_the_version() -> None:
    with pytest.raises(EngineVersionError) as refusal:
        seams(WORKING, OPTIONAL, REQUIRED).check()
    line = str(refusal.value)
    assert "\n" not in line
    assert line.startswith(f"{PACKAGE} 9.9.9: required: expected {PACKAGE}:Thing.missing, found none")
    assert line.endswith(f"everything; use {PACKAGE} 1.0 to 2.0")


def test_a_broken_optional_seam_is_one_warning_however_often_it_is_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    table = seams(WORKING, OPTIONAL)
    table.check()
    table.check()
    assert not table.holds("optional")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{PACKAGE} 9.9.9: optional: expected {PACKAGE}:Thing.act")
    assert record.getMessage().endswith("some speed")


def test_what_fails_at_its_work_is_given_up_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    table = seams(WORKING)
    table.give_up("working", "it said\nnothing")
    table.give_up("working", "again")
    table.check()
    assert not table.holds("working")
    (record,) = caplog.records
    assert "it said nothing" in record.getMessage()


# The engine's start


@pytest.fixture
def all_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had looked at vLLM, and found all that is needed."""
    monkeypatch.setattr(contract.seams, "_wrong", {seam.name: None for seam in contract.SEAMS})
    monkeypatch.setattr(contract.seams, "_warned", set())


async def test_whoever_gives_up_waiting_leaves_no_engine_behind(
    all_hold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = asyncio.Event()
    monkeypatch.setattr(life, "dead", lambda: EngineDeadError)
    loop = asyncio.get_running_loop()

    async def deaf() -> None:
        while not stopped.is_set():
            with suppress(asyncio.CancelledError):
                await stopped.wait()

    handler = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    outputs = SimpleNamespace(propagate_error=lambda error: None)
    llm = SimpleNamespace(
        output_handler=handler,
        output_processor=outputs,
        shutdown=lambda: loop.call_soon_threadsafe(stopped.set),
    )
    ending = asyncio.create_task(contract.shut_down(llm))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    await asyncio.wait_for(stopped.wait(), 30)
    await handler


class Started(engine.VllmEngine):
    """An engine that is loaded, as far as this test goes; each exercise does what the next of `ways` does."""

    def __init__(self, *ways: Any, load: Any = None) -> None:
        super().__init__(Path("model"), EngineOptions())
        self.ways, self.answer, self.exercised = list(ways), load, []

    def _load_model(self) -> Any:
        async def nothing(*_: object) -> None: ...

        return SimpleNamespace(errored=False, shutdown=lambda: None)

    async def _exercise(self) -> None:
        self.exercised.append(contract.seams.holds("direct tokens"))
        way = self.ways.pop(0)
        if way == "silence":
            await asyncio.get_running_loop().create_future()
        if way is not None:
            raise way

    async def load(self) -> Load:
        if self.answer is not None:
            raise self.answer
        return Load(0, 0, 0.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, all_hold: None) -> None:
    monkeypatch.setattr(exercise, "TIMEOUT_S", 0.01)

    async def no_requests(llm: object) -> None: ...

    monkeypatch.setattr(contract, "shut_down", no_requests)


@pytest.mark.parametrize("handler", ["listens", "has ended", "none"])
async def test_vllm_hears_nothing_of_the_end_of_its_engine(
    handler: str, all_hold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler of outputs takes an engine's end for its death: `AsyncLLM output_handler failed`, at every stop."""
    told: list[str] = []
    ended = asyncio.Event()

    async def listen() -> None:
        if handler == "listens":
            try:
                await ended.wait()
                told.append("failed")
            except asyncio.CancelledError:
                told.append("cancelled")
                raise

    def shutdown() -> None:
        told.append("shut down")
        loop.call_soon_threadsafe(ended.set)

    monkeypatch.setattr(life, "dead", lambda: EngineDeadError)
    loop = asyncio.get_running_loop()
    task = None if handler == "none" else asyncio.create_task(listen())
    await asyncio.sleep(0)
    outputs = SimpleNamespace(propagate_error=lambda error: told.append(type(error).__name__))
    llm = SimpleNamespace(output_handler=task, output_processor=outputs, shutdown=shutdown)
    await contract.shut_down(llm)  # type: ignore[arg-type]
    assert told == [*(["cancelled"] if handler == "listens" else []), "shut down", "EngineDeadError"]


@pytest.mark.parametrize("way", ["silence", AttributeError("put"), TypeError("put() takes 3 arguments")])
async def test_where_the_exercise_fails_it_is_tried_vllms_own_way(
    way: Any, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    started = Started(way, None)
    await started.start()
    assert started.exercised == [True, False]
    ours = [record for record in caplog.records if record.name.startswith("runtime.")]
    (record,) = [record for record in ours if record.levelno >= logging.WARNING]
    assert "direct tokens" in record.getMessage()
    await started.health()


async def test_an_engine_that_says_nothing_at_all_does_not_start(impatient: None) -> None:
    started = Started("silence", "silence")
    with pytest.raises(EngineDeadError, match="did not generate: nothing within"):
        await started.start()
    with pytest.raises(EngineDeadError):
        await started.health()


async def test_other_failures_of_the_exercise_are_raised_as_they_are(impatient: None) -> None:
    with pytest.raises(ValueError, match="refused"):
        await Started(ValueError("refused")).start()


async def test_an_engine_that_cannot_tell_its_load_starts_all_the_same(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    await Started(None, load=Exception("Call to scheduler_load method failed")).start()
    assert not contract.seams.holds("load")
    assert "scheduler_load" in caplog.text


async def test_an_engine_that_dies_while_it_is_asked_is_dead(impatient: None) -> None:
    with pytest.raises(EngineDeadError, match="gone"):
        await Started(None, load=EngineDeadError("gone")).start()


def test_a_text_that_cannot_be_shortened_harms_no_reply(all_hold: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.engines.vllm.text import forget_prompt

    monkeypatch.setattr(contract, "fast_text", lambda state: SimpleNamespace())
    forget_prompt(SimpleNamespace(), [1] * 100)  # type: ignore[arg-type]
    assert not contract.seams.holds("prompt text")


def test_waking_that_fails_is_not_tried_again(all_hold: None) -> None:
    asked = []

    class Llm:
        errored = False

        @property
        def output_processor(self) -> Any:
            asked.append(1)
            return SimpleNamespace()

    for _ in range(3):
        assert contract.wake(Llm()) is None  # type: ignore[arg-type]
    assert asked == [1]


def future(**parts: Any) -> Any:
    return SimpleNamespace(**parts)


@pytest.mark.parametrize("batch", [(), (future(),), (future(async_output=object()), future(scheduled_new_reqs=[1]))])
def test_a_batch_that_looks_otherwise_ends_the_search_for_its_first_token(all_hold: None, batch: Any) -> None:
    assert contract.arrival(SimpleNamespace(batch_queue=[batch])) is None
    assert not contract.seams.holds("first token")


def test_a_batch_without_new_requests_or_beside_the_gpu_is_ordinary(all_hold: None) -> None:
    for parts, scheduled in (({}, [1]), ({"async_output": object()}, [])):
        batch = (future(**parts), future(scheduled_new_reqs=scheduled), None)
        assert contract.arrival(SimpleNamespace(batch_queue=[batch])) is None
    assert contract.seams.holds("first token")


@pytest.mark.parametrize("seam", [seam for seam in contract.SEAMS if seam.required], ids=lambda seam: seam.name)
def test_what_is_required_of_vllm_is_refused_with_its_version(seam: Seam, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(seam, needs=("vllm.invented:Nothing",))
    vllm = ModuleType("vllm")
    vllm.__version__ = "0.99.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    with pytest.raises(EngineVersionError, match=r"^vLLM 0\.99\.0: .*use vLLM 0\.25\.1 to 0\.31\.0$"):
        Seams("vLLM", (broken,), ("0.25.1", "0.31.0")).check()
