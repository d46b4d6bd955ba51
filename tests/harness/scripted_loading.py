"""Loading without models: a loader that makes scripted ones, and the collector of garbage as it was before."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import pytest

from runtime import artifact, engines
from runtime.artifact import verify
from runtime.server.life import loader
from tests.harness.scripted import ScriptedEngine, ScriptedRenderer

# Loading sets them.
SET_BY_LOADING = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_VERBOSITY",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "TOKENIZERS_PARALLELISM",
)


@contextlib.contextmanager
def collector_restored() -> Iterator[None]:
    """Take back what loading tells the collector: what stays, and how rarely to look."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@contextlib.contextmanager
def scripted_loading(monkeypatch: pytest.MonkeyPatch, classifier: Callable[..., object]) -> Iterator[None]:
    """Have scripted models made of any artifact, which is read and not checked."""
    for name in SET_BY_LOADING:
        monkeypatch.setenv(name, "1")  # so that the test's end takes them back
    monkeypatch.setattr(verify, "check_artifact", lambda folder, *_, **__: artifact.read(folder))
    monkeypatch.setattr(engines, "preload", lambda *_: None)
    monkeypatch.setattr(engines, "create", lambda *_: ScriptedEngine())
    monkeypatch.setattr(loader, "PromptRenderer", lambda *_, **__: ScriptedRenderer())
    monkeypatch.setattr(loader, "ToolClassifier", classifier)
    with collector_restored():
        yield
