"""The real chain on the embedded models: llm-compressor quantizes, vLLM loads, the gates hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.lanes.gates import failures
from runtime import artifact
from runtime.artifact import ArtifactError, hashes

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

# 8 bits halve the linear layers, 4 bits quarter them; the embedding, a fifth of this model, stays in bfloat16.
LARGEST = {"int8": 180e6, "awq": 135e6}


@pytest.mark.parametrize("method", ["int8", "awq"])
def test_a_method_passes_its_gates_and_records_them(method: str, artifact_of: Callable[[str], Path]) -> None:
    folder = artifact_of(method)
    metadata = artifact.read(folder)
    hashes.verify_files(folder, metadata)
    validation, chat = metadata.validation, metadata.chat
    assert validation is not None
    assert chat is not None
    assert validation.passed
    assert validation.digest == metadata.digest
    gates = {gate.name: gate for gate in validation.gates}
    # Each window gives one position less than it has tokens.
    assert gates["held_out_tokens"].value >= 3900
    # A model that was not quantized at all would not differ from the float one.
    assert gates["top1_agreement"].value < 0.99
    assert gates["perplexity_ratio"].value > 0.9
    assert gates["throughput"].value > 1000 / gates["itl_p50"].value, "eight streams are not faster than one"
    assert chat.quantization.method == method
    assert (folder / "model.safetensors").stat().st_size < LARGEST[method]
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_a_quantized_weight_that_was_changed_is_refused(artifact_of: Callable[[str], Path]) -> None:
    folder = artifact_of("int8")
    weights = folder / "model.safetensors"
    middle = weights.stat().st_size // 2
    with weights.open("r+b") as file:
        file.seek(middle)
        before = file.read(1)
        file.seek(middle)
        file.write(bytes([before[0] ^ 1]))
    try:
        with pytest.raises(ArtifactError, match=r"model\.safetensors: expected SHA-256"):
            hashes.verify_files(folder, artifact.read(folder))
    finally:
        with weights.open("r+b") as file:
            file.seek(middle)
            file.write(before)
    hashes.verify_files(folder, artifact.read(folder))


def test_stricter_bounds_fail_the_measured_figures_by_a_told_amount(artifact_of: Callable[[str], Path]) -> None:
    validation = artifact.read(artifact_of("int8")).validation
    assert validation is not None
    gates = tuple(
        gate.model_copy(update={"threshold": 0.9999}) if gate.name == "top1_agreement" else gate
        for gate in validation.gates
    )
    (told,) = failures(validation.model_copy(update={"gates": gates}))
    (measured,) = (gate.value for gate in gates if gate.name == "top1_agreement")
    assert told.startswith(f"top1_agreement is {measured:.4g}, must be >= 0.9999: ")
    assert told.endswith("too low")
