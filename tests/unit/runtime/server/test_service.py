"""What loading makes of an artifact and the settings, with models that stand in."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from runtime import artifact, engines
from runtime.artifact import ArtifactError, ToolLabel, verify
from runtime.deployment.classifier import Tool
from runtime.deployment.metrics import START_PHASES
from runtime.deployment.settings import SettingsError
from runtime.host import machine
from runtime.server.life import loader
from runtime.server.service import Phase, Service
from runtime.text.replies.reply_format import ReplyFormat
from tests.harness.scripted import ScriptedClassifier, ScriptedEngine, ScriptedRenderer, settings
from tests.harness.scripted_loading import scripted_loading
from tests.harness.server import start_phases_in

GOLDEN = Path(__file__).resolve().parents[3] / "data" / "artifacts"


class Loaded(ScriptedClassifier):
    """A classifier that tells what it was made with."""

    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__()
        type(self).options = {"folder": folder, **options}

    async def start(self) -> None:
        """Nothing to load."""

    async def shutdown(self) -> None:
        """Nothing to stop."""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Loaded, "options", {})
    with scripted_loading(monkeypatch, Loaded):
        yield


async def loaded(**values: Any) -> Service:
    made = Service(settings(artifact=str(GOLDEN / "cpu-int8"), **values))
    try:
        await made.load()
    finally:
        await made.close()
    return made


@pytest.mark.parametrize(("mode", "threads", "fraction"), [(None, 1, 0.2), ("both", 1, 0.2), ("tool", 2, 0.9)])
async def test_beside_a_chat_engine_the_classifier_takes_one_thread_and_little_memory(
    mode: str | None, threads: int, fraction: float
) -> None:
    made = await loaded(deploy_mode=mode)
    assert made.phase is Phase.READY
    assert Loaded.options["folder"].parts[-2:] == ("artifact", "tool"), "what was checked, not where it came from"
    assert (Loaded.options["cpu_threads"], Loaded.options["gpu_fraction"]) == (threads, fraction)


class Parting(ScriptedEngine):
    """An engine whose processes are made in the middle of its start, and that is not done before a classifier began."""

    def __init__(self, made: asyncio.Event, began: asyncio.Event, order: list[str]) -> None:
        super().__init__()
        self._made, self._began, self._order = made, began, order

    async def start(self) -> None:
        self._order.append("starts")
        await asyncio.sleep(0.01)
        self._order.append("forks")
        self._made.set()
        await asyncio.wait_for(self._began.wait(), 60)
        self._order.append("started")

    async def apart(self) -> None:
        await self._made.wait()


async def test_the_classifier_loads_beside_the_engine_from_when_its_processes_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before, it would be forked with them; after, it would be waited for."""
    made, began, order = asyncio.Event(), asyncio.Event(), []

    class Beginning(Loaded):
        def begin(self) -> None:
            order.append("classifier begins")
            began.set()

        async def start(self) -> None:
            order.append("classifier starts")

    monkeypatch.setattr(engines, "create", lambda *_: Parting(made, began, order))
    monkeypatch.setattr(loader, "ToolClassifier", Beginning)
    await loaded()
    assert order == ["starts", "forks", "classifier begins", "started", "classifier starts"]


async def test_the_template_is_prepared_beside_the_engine_from_when_its_processes_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before, threads that it computes with would be forked in the middle of their work."""
    made, order, began = asyncio.Event(), [], asyncio.Event()
    loop = asyncio.get_running_loop()

    def render(*_: object, **__: object) -> ScriptedRenderer:
        order.append("renderer")
        loop.call_soon_threadsafe(began.set)
        return ScriptedRenderer()

    monkeypatch.setattr(engines, "create", lambda *_: Parting(made, began, order))
    monkeypatch.setattr(loader, "PromptRenderer", render)
    await loaded(deploy_mode="chat")
    assert order == ["starts", "forks", "renderer", "started"]


@pytest.mark.parametrize("engine_fails", [True, False])
async def test_a_template_that_cannot_be_used_is_what_is_told_whatever_the_engine_does(
    monkeypatch: pytest.MonkeyPatch, engine_fails: bool
) -> None:
    class Odd(ScriptedEngine):
        async def start(self) -> None:
            if engine_fails:
                raise RuntimeError("no tokenizer either")
            await asyncio.Event().wait()

        async def apart(self) -> None:
            if engine_fails:
                await asyncio.Event().wait()

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("the template is none")

    monkeypatch.setattr(engines, "create", lambda *_: Odd())
    monkeypatch.setattr(loader, "PromptRenderer", refuse)
    with pytest.raises(ArtifactError, match="the template is none"):
        await asyncio.wait_for(loaded(deploy_mode="chat"), 60)


async def test_where_an_engine_does_not_tell_the_classifier_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Silent(ScriptedEngine):
        async def start(self) -> None:
            await asyncio.sleep(0.01)
            order.append("started")

    class Beginning(Loaded):
        def begin(self) -> None:
            order.append("classifier begins")

        async def start(self) -> None:
            order.append("classifier starts")

    monkeypatch.setattr(engines, "create", lambda *_: Silent())
    monkeypatch.setattr(loader, "ToolClassifier", Beginning)
    await loaded()
    assert order == ["started", "classifier starts"]


async def test_an_engine_that_does_not_start_is_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(ScriptedEngine):
        async def start(self) -> None:
            await asyncio.sleep(0.01)
            raise RuntimeError("no memory")

        async def apart(self) -> None:
            """At once."""

    class Beginning(Loaded):
        def begin(self) -> None:
            """It would fail too."""

        async def start(self) -> None:
            raise ValueError("no tokenizer")

    monkeypatch.setattr(engines, "create", lambda *_: Failing())
    monkeypatch.setattr(loader, "ToolClassifier", Beginning)
    with pytest.raises(RuntimeError, match="no memory"):
        await loaded()


async def test_the_table_of_tools_reaches_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = artifact.read(GOLDEN / "cpu-int8")
    table = (ToolLabel(label=2, name="play_music", threshold=0.8), ToolLabel(label=1, name="take_screenshot"))
    assert golden.tool is not None
    tool = golden.tool.model_copy(update={"tools": table, "positive_label": None, "threshold": 0.7})
    monkeypatch.setattr(artifact, "read", lambda _: golden.model_copy(update={"tool": tool}))
    await loaded(deploy_mode="tool")
    assert Loaded.options["tools"] == (Tool("play_music", 2, 0.8), Tool("take_screenshot", 1, 0.7))


async def test_what_was_loaded_is_not_looked_through_for_garbage_again() -> None:
    def looked_through(thing: object) -> bool:
        return any(tracked is thing for tracked in gc.get_objects())

    there = [object()]
    assert looked_through(there)
    await loaded()
    assert not looked_through(there)
    came_later = [object()]
    assert looked_through(came_later)


@pytest.mark.parametrize(("mode", "chat", "tool"), [("chat", True, False), ("tool", False, True), ("both", True, True)])
async def test_what_is_not_deployed_is_not_loaded(mode: str, chat: bool, tool: bool) -> None:
    made = await loaded(deploy_mode=mode)
    assert made.deployment is not None
    assert (made.deployment.chat is not None, made.deployment.classifier is not None) == (chat, tool)
    assert bool(Loaded.options) is tool


async def test_settings_that_the_artifact_cannot_fit_stop_it_before_anything_is_loaded() -> None:
    with pytest.raises(SettingsError, match="CHAT_MAX_LEN"):
        await loaded(chat_max_len=1_000_000)
    assert not Loaded.options


async def test_the_engine_is_imported_while_the_files_are_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = threading.Event()

    def check(folder: Path, *_: Any, **__: Any) -> artifact.BuildMetadata:
        assert imported.wait(5)
        return artifact.read(folder)

    monkeypatch.setattr(engines, "preload", lambda *_: imported.set())
    monkeypatch.setattr(verify, "check_artifact", check)
    assert (await loaded(deploy_mode="chat")).phase is Phase.READY


async def test_the_engine_is_imported_while_the_machine_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    imported, describe = threading.Event(), machine.describe

    def look() -> machine.Machine:
        assert imported.wait(5)
        assert not gc.isenabled(), "nothing looks for garbage meanwhile"
        return describe()

    monkeypatch.setattr(engines, "preload", lambda *_: imported.set())
    monkeypatch.setattr(machine, "describe", look)
    assert (await loaded(deploy_mode="chat")).phase is Phase.READY
    assert gc.isenabled()


async def test_a_refused_artifact_does_not_wait_for_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = threading.Event()

    def check(*_: Any, **__: Any) -> artifact.BuildMetadata:
        raise ArtifactError("expected another")

    monkeypatch.setattr(engines, "preload", lambda *_: refused.wait(5))
    monkeypatch.setattr(verify, "check_artifact", check)
    with pytest.raises(ArtifactError, match="expected another"):
        await loaded(deploy_mode="chat")
    refused.set()


async def test_the_engine_forks_before_the_classifier_uses_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM cannot fork a process that has used CUDA: it would start a new one and import everything again."""
    order: list[str] = []

    class Engine(ScriptedEngine):
        async def start(self) -> None:
            order.append("engine")
            await super().start()

    class Tool(Loaded):
        async def start(self) -> None:
            order.append("classifier")

    monkeypatch.setattr(engines, "create", lambda *_: Engine())
    monkeypatch.setattr(loader, "ToolClassifier", Tool)
    await loaded(deploy_mode="both")
    assert order == ["engine", "classifier"]


@pytest.mark.parametrize(("budget", "served"), [(0, False), (64, True)])
async def test_a_model_that_always_thinks_is_served_with_a_budget_alone(
    monkeypatch: pytest.MonkeyPatch, budget: int, served: bool
) -> None:
    class Thinker(ScriptedRenderer):
        format = ReplyFormat(begun="<think>", thinks=True)

    monkeypatch.setattr(loader, "PromptRenderer", lambda *_, **__: Thinker())
    if served:
        assert (await loaded(thinking_max_tokens=budget, chat_max_out=8)).phase is Phase.READY
        return
    with pytest.raises(SettingsError, match="THINKING_MAX_TOKENS: expected a budget for thought"):
        await loaded(thinking_max_tokens=budget)


@pytest.mark.parametrize(
    ("proven", "asked", "budget", "told"),
    [(64, None, 64, False), (64, 32, 32, True), (64, 64, 64, False), (0, 64, 64, True), (64, 0, None, True)],
)
async def test_thought_has_the_budget_that_it_was_proven_with_unless_the_operator_sets_another(
    monkeypatch: pytest.MonkeyPatch, proven: int, asked: int | None, budget: int | None, told: bool
) -> None:
    class Thinker(ScriptedRenderer):
        format = ReplyFormat(begun="<think>", thinks=True)

    golden = artifact.read(GOLDEN / "cpu-int8")
    assert golden.chat is not None
    chat = golden.chat.model_copy(update={"thinking_max_tokens": proven})
    monkeypatch.setattr(artifact, "read", lambda _: golden.model_copy(update={"chat": chat}))
    monkeypatch.setattr(loader, "PromptRenderer", lambda *_, **__: Thinker())
    if budget is None:
        with pytest.raises(SettingsError, match="THINKING_MAX_TOKENS: expected a budget for thought"):
            await loaded(thinking_max_tokens=asked)
        return
    with structlog.testing.capture_logs() as lines:
        made = await loaded(thinking_max_tokens=asked, chat_max_out=8)
    assert made.deployment is not None
    assert made.deployment.chat is not None
    assert made.deployment.chat._thinking == budget
    warned = [line for line in lines if line["log_level"] == "warning" and "thought" in line["event"]]
    assert [(line["tokens"], line["proven"]) for line in warned] == ([(budget, proven)] if told else [])


async def test_a_template_that_cannot_be_rendered_is_a_fault_of_the_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("expected a chat template, found none")

    monkeypatch.setattr(loader, "PromptRenderer", refuse)
    with pytest.raises(ArtifactError, match="expected a chat template"):
        await loaded()


async def test_every_phase_of_a_start_is_one_that_metrics_know_and_they_are_all_of_its_time() -> None:
    began = time.monotonic()
    made = await loaded()
    took = made.timeline.phases()
    assert took.keys() <= set(START_PHASES)
    assert {"process", "fetch", "check", "import", "template", "spawn", "classifier", "settle"} <= took.keys()
    assert 0 < sum(took.values()) <= time.monotonic() - began


async def test_where_the_time_of_a_start_went_is_told() -> None:
    now = time.monotonic()
    made = Service(settings(artifact=str(GOLDEN / "cpu-int8")), began=now - 100)
    made.timeline.enter("fetch", now - 60)
    made.timeline.end(now + 0.00001)
    made.metrics.started(made.timeline.phases())
    told = made.metrics.render().decode()
    assert re.search(r'yap_start_seconds\{phase="process"\} (39\.9|40\.)', told)
    assert 'yap_start_seconds{phase="graphs"} 0.0' in told
    assert start_phases_in(told) == pytest.approx({"process": 40, "fetch": 60}, abs=0.001)
