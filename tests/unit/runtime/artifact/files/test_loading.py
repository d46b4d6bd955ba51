"""What the server makes of an artifact that changes while it is loaded, and of code in it: with the real checks."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from runtime import artifact, engines
from runtime.artifact import ArtifactError, BuildMetadata
from runtime.artifact.files.view import View
from runtime.server.life import loader
from runtime.server.process import failure
from runtime.server.service import Phase, Service
from tests.harness.scripted import ScriptedClassifier, ScriptedEngine, ScriptedRenderer, settings
from tests.harness.scripted_loading import collector_restored
from tests.hub.golden import CPU, copy, relist

CACHED = "compile_cache/inductor_cache/ab/entry.py"


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    with collector_restored():
        yield


class Loading:
    """Stands for whatever loads: notes what it was given, and lets a test do something meanwhile."""

    def __init__(self) -> None:
        self.folder = Path()
        self.metadata: BuildMetadata | None = None
        self.seen: set[str] = set()
        self.meanwhile: Callable[[], object] = lambda: None

    def create(self, folder: Path, metadata: BuildMetadata, *_: object) -> ScriptedEngine:
        self.folder, self.metadata = folder, metadata
        self.seen = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        self.meanwhile()
        return ScriptedEngine()


class Classifier(ScriptedClassifier):
    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    async def start(self) -> None: ...

    async def shutdown(self) -> None: ...


@pytest.fixture
def loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loading:
    made = Loading()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "1")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(loader.machine, "describe", lambda: CPU)
    monkeypatch.setattr(engines, "preload", lambda *_: None)
    monkeypatch.setattr(engines, "create", made.create)
    monkeypatch.setattr(loader, "PromptRenderer", lambda *_, **__: ScriptedRenderer())
    monkeypatch.setattr(loader, "ToolClassifier", Classifier)
    return made


async def load(folder: Path, **values: Any) -> Service:
    made = Service(settings(artifact=str(folder), **values))
    try:
        await made.load()
    finally:
        await made.close()
    return made


async def test_engines_are_given_listed_files_alone_and_nothing_is_left_behind(
    loading: Loading, tmp_path: Path
) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    assert (await load(folder)).phase is Phase.READY
    assert loading.seen == {entry.path for entry in artifact.read(folder).files}
    assert not loading.folder.is_relative_to(folder)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("path", ["model.safetensors", "tool/model.safetensors"])
async def test_weights_that_are_written_to_while_they_are_loaded_are_refused(
    loading: Loading, tmp_path: Path, path: str
) -> None:
    folder = copy("cpu-int8", tmp_path / "a")

    def write() -> None:
        with (folder / path).open("r+b") as file:
            file.write(b"others")

    loading.meanwhile = write
    with pytest.raises(ArtifactError, match=f"{path}: expected the file that was checked, found that it changed"):
        await load(folder)
    assert list((tmp_path / "scratch").iterdir()) == []


class Slow(ScriptedEngine):
    """An engine that is not loaded before everything else has had its say."""

    async def start(self) -> None:
        await asyncio.Event().wait()


class Failing(ScriptedEngine):
    """An engine that what it reads makes fail."""

    async def start(self) -> None:
        raise RuntimeError("Error while deserializing header")


@pytest.mark.parametrize("engine", [ScriptedEngine, Slow, Failing])
@pytest.mark.parametrize("path", ["model.safetensors", "tool/model.safetensors"])
async def test_weights_of_other_bytes_end_the_start_with_one_error_whatever_the_engine_makes_of_them(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, engine: type[ScriptedEngine]
) -> None:
    """They may be read before they are proven; nobody is served before."""
    folder = copy("cpu-int8", tmp_path / "a")
    content = (folder / path).read_bytes()
    (folder / path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(engines, "create", lambda *_: engine())
    opened: list[object] = []
    monkeypatch.setattr(Service, "open", lambda *_: opened.append(_))
    service = Service(settings(artifact=str(folder)))
    service.start()
    try:
        with pytest.raises(ArtifactError, match=f"^{folder}/{path}: expected SHA-256 .*; fetch or build") as refused:
            await asyncio.wait_for(asyncio.shield(service.ended), 60)
        assert failure(refused.value)[0] == os.EX_DATAERR
        assert (service.phase, opened) == (Phase.DEAD, [])
    finally:
        await service.close()
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_server_is_not_ready_while_a_byte_is_unproven(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven, asked = threading.Event(), threading.Event()
    wait = View.proven

    def late(view: View) -> None:
        asked.set()
        assert proven.wait(60)
        wait(view)

    monkeypatch.setattr(View, "proven", late)
    service = Service(settings(artifact=str(copy("cpu-int8", tmp_path / "a"))))
    service.start()
    try:
        while service.reason != "proving the weights":  # noqa: ASYNC110 - it tells nobody that everything is loaded
            await asyncio.sleep(0.001)
        assert asked.is_set()
        assert service.phase is Phase.LOADING
        proven.set()
        await service.opened()
        assert service.timeline.phases()["proof"] > 0
    finally:
        proven.set()
        await service.close()


async def test_an_engines_own_failure_is_told_where_the_weights_are_the_listed_ones(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "create", lambda *_: Failing())
    with pytest.raises(RuntimeError, match="deserializing header"):
        await load(copy("cpu-int8", tmp_path / "a"))


async def test_an_artifact_that_is_exchanged_between_the_plan_and_the_check_is_refused(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    read, times = artifact.read, []

    def exchanged(path: Path) -> BuildMetadata:
        found = read(path)
        times.append(path)
        return found.model_copy(update={"created_at": "2027"}) if len(times) == 2 else found

    monkeypatch.setattr(artifact, "read", exchanged)
    with pytest.raises(ArtifactError, match="expected what was read first, found that it changed"):
        await load(folder)


@pytest.mark.parametrize("trust", ["signed", "unsigned"])
async def test_a_compile_cache_without_a_signature_is_left_out_and_told(
    loading: Loading, tmp_path: Path, trust: str
) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    (folder / CACHED).parent.mkdir(parents=True)
    (folder / CACHED).write_text("1/0")
    relist(folder, compile_cache="compile_cache")
    with structlog.testing.capture_logs() as told:
        assert (await load(folder, artifact_trust=trust)).phase is Phase.READY
    trusted = trust == "unsigned"
    assert (CACHED in loading.seen) is trusted
    assert loading.metadata is not None
    assert loading.metadata.chat is not None
    assert loading.metadata.chat.compile_cache == ("compile_cache" if trusted else None)
    events = [entry["event"] for entry in told]
    assert ("compile_cache_left_out" in events) is not trusted


@pytest.mark.parametrize(("gpus", "left_out"), [(None, False), (1, False), (2, True)])
async def test_a_compile_cache_for_another_number_of_gpus_is_told(
    loading: Loading, tmp_path: Path, gpus: int | None, left_out: bool
) -> None:
    folder = copy("cpu-int8", tmp_path / "a")
    (folder / CACHED).parent.mkdir(parents=True)
    (folder / CACHED).write_text("1/0")
    relist(folder, compile_cache="compile_cache")
    with structlog.testing.capture_logs() as told:
        served = await load(folder, artifact_trust="unsigned", tensor_parallel_size=gpus)
    assert served.phase is Phase.READY
    reasons = [entry["reason"] for entry in told if entry["event"] == "compile_cache_left_out"]
    assert reasons == (
        ["it was compiled for 1 GPU(s) that share the model; the engine compiles anew"] if left_out else []
    )


async def test_a_refusal_of_a_loader_names_the_artifact_and_not_the_view(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy("cpu-int8", tmp_path / "a")

    def refuse(view: Path, *_: object, **__: object) -> None:
        raise ValueError(f"{view}: expected a chat template, found none")

    monkeypatch.setattr(loader, "PromptRenderer", refuse)
    with pytest.raises(ArtifactError, match=f"^{folder}: expected a chat template"):
        await load(folder)
