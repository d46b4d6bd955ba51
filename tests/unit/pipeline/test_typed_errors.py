"""Errors and answers carry their parts, so that nobody has to look for words in what another module wrote."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.shape import Shape, ShapeError
from pipeline.lanes import LANES, METHODS, TRT_PYTORCH, Lane
from pipeline.lanes.gates import describe_failure
from pipeline.publish.reports.validation_status import validation_status
from pipeline.quantize import calibration
from pipeline.run import GateError
from pipeline.source import SourceFacts
from pipeline.stages.stage import StageError
from pipeline.steps.stage_runner import StageRunner
from runtime import artifact
from runtime.artifact import ArtifactError, Gate, Validation
from runtime.host.machine import Machine
from tests.harness.builds.progress import RecordedProgress

GOLDEN = Path(__file__).resolve().parents[3] / "tests/data/artifacts"
TWO_TOKENS = {"HF_TOKEN": "hf_one", "HUGGINGFACE_HUB_TOKEN": "hf_two"}

LIKE_IT = ["tool_accuracy", "tool_accuracy_on_old_texts", "perplexity_ratio", "yes"]
names = st.sampled_from(LIKE_IT) | st.text(min_size=1)


@given(st.lists(names, min_size=1, max_size=4))
def test_the_classifier_failed_alone_when_no_other_gate_did(failed: list[str]) -> None:
    gates = [Gate(name=name, value=0.5, relation=">=", threshold=0.75) for name in failed]
    error = GateError("awq", gates)
    assert error.classifier_alone == (set(failed) == {"tool_accuracy"})
    assert error.failures == [describe_failure(gate) for gate in gates]
    assert str(error) == "awq: " + "; ".join(error.failures)


@pytest.mark.parametrize("lane", [*LANES.values(), TRT_PYTORCH], ids=lambda lane: lane.engine + lane.name)
@pytest.mark.parametrize("sm", [None, 75, 80, 86, 89, 90, 100, 120])
def test_a_refusal_tells_the_reason_and_the_way_out_apart(lane: Lane, sm: int | None) -> None:
    for method in METHODS:
        refusal = lane.refusal(method, sm, allow_emulated=False)
        if refusal is not None:
            assert refusal.reason
            assert "use " in refusal.way_out
            assert "use " not in refusal.reason
            assert str(refusal) == f"{refusal.reason}; {refusal.way_out}"


@pytest.mark.parametrize("name", ["yes", "yes, on time"])
def test_a_failed_gate_proves_nothing_whatever_it_is_called(name: str) -> None:
    metadata = artifact.read(GOLDEN / "tool-only")
    failed = Gate(name=name, value=0, relation=">=", threshold=1)
    validation = Validation(gates=(failed,), validated_at="2026-11-22T10:00:00+00:00", digest=metadata.digest)
    told = validation_status(metadata.model_copy(update={"validation": validation}))
    assert (told.valid, str(told)) == (False, f"no: failed {name}")


def test_a_shape_names_the_dimension_that_is_missing() -> None:
    with pytest.raises(ShapeError) as caught:
        Shape.of({"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2})
    assert caught.value.dimension == "vocab_size"


def test_two_tokens_are_told_by_their_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in TWO_TOKENS.items():
        monkeypatch.setenv(variable, value)
    runner = StageRunner(tmp_path, Machine(), RecordedProgress())
    with pytest.raises(StageError) as caught:
        runner.chat_source(SourceFacts("org/name", "hub", "org/name", revision="0" * 40))
    assert (caught.value.where, caught.value.what) == (
        " and ".join(TWO_TOKENS),
        "expected one token, found 2; unset one",
    )
    with pytest.raises(StageError) as caught:
        calibration.read_dataset("org/texts", Path(sys.executable))
    assert (caught.value.stage, caught.value.where) == ("calibration", " and ".join(TWO_TOKENS))


def test_an_artifact_error_is_told_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub says is cleared of addresses; our own lines have none, but paths that look like some."""
    line = f"{tmp_path}/what?/a.bin: expected SHA-256 12, found 34"

    def fetch(*_: object) -> Path:
        raise ArtifactError(line)

    monkeypatch.setattr("pipeline.source.fetch", fetch)
    with pytest.raises(StageError) as caught:
        StageRunner(tmp_path, Machine(), RecordedProgress()).chat_source(SourceFacts("org/name", "hub", "org/name"))
    assert caught.value.what == f"the model could not be read: {line}"
