"""Every method of llm-compressor on tiny models: what it writes, and that it writes the same again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from pipeline.quantize import QuantizeJob
from pipeline.quantize.vllm import quantize
from runtime.artifact.hashes import hash_folder
from tests.harness.builds.progress import RecordedProgress
from tests.harness.models import tiny

pytestmark = pytest.mark.engine

QUANTIZER = Path(__file__).parents[2] / ".venv-quantize" / "bin" / "python"

# What compressed-tensors calls each method's checkpoint format.
FORMATS = {"awq": "pack-quantized", "gptq": "pack-quantized", "fp8": "float-quantized", "int8": "int-quantized"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.samples(tmp_path_factory.mktemp("samples") / "samples.jsonl")


def job(method: str, model: Path, samples: Path, out: Path, **changes) -> QuantizeJob:
    fields = {
        "method": method,
        "model": model,
        "out": out,
        "group_size": 32,
        "symmetric": False,
        "kept_in_float": ("lm_head",),
        "samples": samples,
        "sequence_length": 32,
        "seed": 0,
        "device": "cpu",
    }
    return QuantizeJob(**(fields | changes))


def tensors_of(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("method", ["gptq", "fp8", "int8"])
def test_a_method_writes_a_whole_checkpoint(method: str, llama: Path, samples: Path, tmp_path: Path) -> None:
    check_method(method, llama, samples, tmp_path)


def check_method(method: str, llama: Path, samples: Path, out: Path) -> None:
    told = RecordedProgress()
    made = quantize(job(method, llama, samples, out), python=QUANTIZER, progress=told)

    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["format"] == FORMATS[method]
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert (made.method, made.kept_in_float) == (method, ("model.embed_tokens",))
    assert made.group_size == (32 if made.scheme == "W4A16" else None)
    assert told.fractions == sorted(told.fractions)
    assert told.fractions[-1] == 1
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (llama / name).read_bytes()
    names = tensors_of(out)
    assert "model.layers.1.mlp.down_proj.weight_scale" in names
    assert not any(name.startswith("lm_head") and "scale" in name for name in names)


def test_the_same_job_writes_the_same_bytes(llama: Path, samples: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        check_method("awq", llama, samples, tmp_path / name)
    assert hash_folder(tmp_path / "first") == hash_folder(tmp_path / "second")


def test_the_gates_of_a_mixture_of_experts_stay_in_float(samples: Path, tmp_path: Path) -> None:
    model = tiny.mixtral(tmp_path / "mixtral")
    kept = ("lm_head", "re:.*gate$")
    quantize(
        job("gptq", model, samples, tmp_path / "out", kept_in_float=kept), python=QUANTIZER, progress=RecordedProgress()
    )
    names = tensors_of(tmp_path / "out")
    assert any("experts" in name and name.endswith("weight_packed") for name in names)
    assert not any(".gate." in name and "weight_packed" in name for name in names)
