"""A proof is kept as long as it speaks of what lies there, and no longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.plan import BuildRequest
from pipeline.plan.prepare import prepare
from pipeline.run import Run
from pipeline.validate import validation as validating
from pipeline.validate.tool_accuracy import ToolFigures
from runtime import artifact
from runtime.artifact import ArtifactError, verify
from tests.harness.builds.progress import RecordedProgress
from tests.harness.models.classifiers import checkpoint


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(validating, "measure_tools", lambda *_: ToolFigures({"take_screenshot": 1.0}, {}))
    return checkpoint("bert", tmp_path / "model", names=("no", "yes"))


def run_of(model: Path, label: str | None = None) -> Run:
    request = BuildRequest(tool=str(model), lanes=("cpu",), positive_label=label, out=model.parent / "artifact")
    return Run(prepare(request, model.parent / "cache", {}), RecordedProgress())


def proven_at(model: Path) -> Path:
    run = run_of(model)
    return run.finish(*run.validate())


def built(model: Path, label: str | None = None) -> Path:
    run = run_of(model, label)
    return run.finish(*run.build())


def test_a_build_of_the_same_leaves_the_proof_where_it_is(model: Path) -> None:
    place = proven_at(model)
    before = (place / artifact.METADATA_NAME).read_bytes()
    assert built(model) == place
    assert (place / artifact.METADATA_NAME).read_bytes() == before
    verify.check_proven(place)


def test_a_build_of_the_same_files_with_another_label_is_not_proven(model: Path) -> None:
    place = proven_at(model)
    built(model, "no")
    assert artifact.read(place).validation is None


def test_a_build_of_other_files_is_not_proven(model: Path) -> None:
    place = proven_at(model)
    checkpoint("bert", model, names=("no", "yes"))
    (model / "extra.json").write_text("{}")
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    built(model)
    assert artifact.read(place).validation is None
    with pytest.raises(ArtifactError, match="no validation"):
        verify.check_proven(place)


@pytest.mark.parametrize("damage", ["a failed gate", "a missing gate", "a changed file"])
def test_a_build_replaces_what_is_not_proven_any_more(model: Path, damage: str) -> None:
    place = proven_at(model)
    metadata = artifact.read(place)
    assert metadata.validation is not None
    if damage == "a changed file":
        weights = place / "tool" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    else:
        changed = [gate.model_copy(update={"value": 0.1}) for gate in metadata.validation.gates if gate.relation]
        gates = tuple(changed) if damage == "a failed gate" else metadata.validation.gates[:1]
        broken = metadata.validation.model_copy(update={"gates": gates})
        metadata.model_copy(update={"validation": broken}).write(place)
    built(model)
    assert artifact.read(place).validation is None
