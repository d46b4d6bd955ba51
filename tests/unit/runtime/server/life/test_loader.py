"""Whatever a library does while it is loaded, the process says why it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime import artifact, engines
from runtime.artifact import verify
from runtime.deployment import traces
from runtime.server.life import loader
from runtime.server.process import failure
from runtime.server.service import Phase, Service
from tests.harness.scripted import ScriptedClassifier, ScriptedEngine, settings
from tests.harness.scripted_loading import scripted_loading

GOLDEN = Path(__file__).resolve().parents[4] / "data" / "artifacts" / "cpu-int8"
# Everything of others' that runs while a server loads.
CALLS = [
    (loader.machine, "describe"),
    (artifact, "read"),
    (loader, "View"),
    (verify, "check_artifact"),
    (engines, "preload"),
    (loader, "PromptRenderer"),
    (engines, "create"),
    (ScriptedEngine, "start"),
    (loader, "ToolClassifier"),
    (traces, "tracer"),
]


class Classifier(ScriptedClassifier):
    """A classifier that takes whatever it is made with."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    async def start(self) -> None:
        """Nothing to load."""

    async def shutdown(self) -> None:
        """Nothing to stop."""


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with scripted_loading(monkeypatch, Classifier):
        yield


def raising(error: BaseException) -> Callable[..., None]:
    def leave(*_: object, **__: object) -> None:
        raise error

    return leave


async def failed() -> BaseException:
    """What the loading of the golden artifact ends with."""
    service = Service(settings(artifact=str(GOLDEN)))
    service.start()
    try:
        await asyncio.wait({service.ended}, timeout=60)
        assert (service.phase, service.reason) == (Phase.DEAD, "loading failed")
        assert not (service._loader.view and service._loader.view.folder.exists())
        error = service.ended.exception()
        assert error is not None
        return error
    finally:
        await service.close()


@pytest.mark.parametrize(("owner", "name"), CALLS, ids=[name for _, name in CALLS])
async def test_a_library_that_exits_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    monkeypatch.setattr(owner, name, raising(SystemExit(3)))
    assert str(await failed()) == "a library asked for exit status 3"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SystemExit(), "a library asked for exit status 0"),
        (SystemExit("no such GPU"), "a library asked for exit status no such GPU"),
        (KeyboardInterrupt(), "it raised KeyboardInterrupt"),
    ],
)
async def test_an_import_that_exits_is_told(monkeypatch: pytest.MonkeyPatch, error: BaseException, told: str) -> None:
    monkeypatch.setattr(engines, "preload", raising(error))
    status, text = failure(await failed())
    assert (status, text) == (70, f"loading failed: StepFailedError: {told}")


async def test_an_import_that_exits_takes_nothing_from_an_artifact_that_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The two run at the same time, each in a task of its own: neither may take the loop with it."""
    monkeypatch.setattr(engines, "preload", raising(SystemExit(3)))
    monkeypatch.setattr(verify, "check_artifact", raising(artifact.ArtifactError("it is not what it says")))
    assert isinstance(await failed(), (RuntimeError, artifact.ArtifactError))
    await asyncio.sleep(0.05)  # the loop goes on
