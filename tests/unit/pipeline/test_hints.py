"""After a failed gate the advice names what can help against that one, and its option; nothing that cannot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import hints
from pipeline.lanes import LANES
from pipeline.lanes.gate_specs import OPTIONS, SPECS
from pipeline.source import EMBEDDED
from runtime.artifact import Gate


def prepared(method: str = "awq", *, prequantized: bool = False, tool: str | None = EMBEDDED) -> Any:
    chat = SimpleNamespace(
        method=method, prequantized=prequantized, scheme="W4A16", calibration=SimpleNamespace(samples=64)
    )
    classifier = SimpleNamespace(source=SimpleNamespace(kind=tool)) if tool else None
    return SimpleNamespace(plan=SimpleNamespace(chat=chat, tool=classifier, lane=LANES["cpu"], sm=None))


def advice(capsys: pytest.CaptureFixture[str], work: Any, *names: str) -> str:
    gates = [Gate(name=name, value=0.0, relation=">=", threshold=1.0) for name in names]
    hints.print_next_step(work, gates)
    return capsys.readouterr().err


def test_quality_wants_another_method_or_more_samples(capsys: pytest.CaptureFixture[str]) -> None:
    told = advice(capsys, prepared(), "perplexity_ratio")
    assert "--fallback" in told
    assert "more samples" in told
    assert "--max-perplexity-ratio" in told
    assert "GPU" not in told


def test_speed_wants_a_quiet_or_a_faster_machine_and_no_samples(capsys: pytest.CaptureFixture[str]) -> None:
    told = advice(capsys, prepared(), "itl_p50")
    assert "run again" in told
    assert "--max-itl-ms" in told
    assert "samples" not in told


def test_a_float_model_has_no_other_method(capsys: pytest.CaptureFixture[str]) -> None:
    for work in (prepared("none"), prepared(prequantized=True)):
        told = advice(capsys, work, "known_prompts")
        assert "choose another model" in told
        assert "--fallback" not in told


@pytest.mark.parametrize(("kind", "label"), [(EMBEDDED, False), ("hub", True)])
def test_a_classifier_wants_another_one_or_another_label(
    capsys: pytest.CaptureFixture[str], kind: str, label: bool
) -> None:
    told = advice(capsys, prepared(tool=kind), "tool_accuracy:play_music")
    assert "another TOOL_MODEL" in told
    assert ("--positive-label" in told) is label


@pytest.mark.parametrize("name", [spec.name for spec in SPECS])
def test_every_gate_has_advice_and_its_own_option_alone(capsys: pytest.CaptureFixture[str], name: str) -> None:
    told = advice(capsys, prepared(), name)
    assert told.startswith("next: ")
    assert told.count("\n") == 1
    options = {option.name for spec, option in OPTIONS.items() if spec.name == name}
    assert all(option in told for option in options)
    assert not any(option.name in told.split("; see")[0] for spec, option in OPTIONS.items() if spec.name != name)
