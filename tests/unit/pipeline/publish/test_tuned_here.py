"""`inspect` says which tuned options a server would take on this machine."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pipeline.publish import inspect as module
from pipeline.publish.reports.printing import PlainConsole
from runtime.artifact import EngineChoices, TriedOptions, TunedFigures, TunedOptions
from runtime.engines.tuned import key_of
from runtime.host.machine import Gpu, Machine
from tests.harness.models.metadata import metadata

HERE = Machine(
    gpus=(Gpu("NVIDIA H100 80GB HBM3", 90, 80 << 30, 79 << 30),),
    driver="580.1",
    packages={"vllm": "0.31.0", "torch": "2.12.0+cu130"},
)


def shown(folder: Path, monkeypatch: pytest.MonkeyPatch, *, on: Machine, choices: EngineChoices) -> str:
    plain = metadata()
    run = TunedFigures(itl_ms=4.0, ttft_ms=50.0, tokens_per_s=9000.0, ttft_one_ms=12.5)
    base = TriedOptions(name="base", outcome="base", runs=(run, run))
    key = key_of(HERE, plain.chat.limits)
    tried = TunedOptions(goal="latency", key=key, choices=choices, noise=0.01, candidates=(base,))
    chat = plain.chat.model_copy(update={"engine_options": tried})
    plain.model_copy(update={"chat": chat}).write(folder)
    monkeypatch.setattr(module.machine, "describe", lambda: on)
    console = PlainConsole()
    console.file = io.StringIO()
    console.width = 200
    module.inspect(folder, console, as_json=False, verify=False)
    return " ".join(console.file.getvalue().split())


def test_where_they_were_measured_they_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = shown(tmp_path, monkeypatch, on=HERE, choices=EngineChoices(cudagraph_mode="FULL"))
    assert "options here cudagraph_mode=FULL applies" in told
    assert "12.5" in told


def test_elsewhere_it_says_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = shown(tmp_path, monkeypatch, on=Machine(), choices=EngineChoices(cudagraph_mode="FULL"))
    assert "options here left: all: engine is vllm None, was vllm 0.31.0" in told


def test_where_nothing_was_chosen_nothing_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "options here" not in shown(tmp_path, monkeypatch, on=HERE, choices=EngineChoices())
