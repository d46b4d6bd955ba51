"""Quantizing and compiling for TensorRT-LLM, up to the calls; the chain through the stand-in is in test_trt_chain."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.build import trt as building
from pipeline.quantize import QuantizeJob
from pipeline.quantize import trt as quantizing
from pipeline.stages import StageError

GOLDEN = Path(__file__).parents[1] / "data/trt"
JOB = QuantizeJob(
    "int4_awq", Path("model"), Path("out"), 64, True, (), Path("samples"), 512, 7, "cpu", "float16", 1, "pytorch"
)

# ModelOpt keeps its configurations as a dict up to 0.37 and beyond, and as a list by 0.47.
OLD = {"quant_cfg": {"*weight_quantizer": {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}, "enable": True}}}
NEW = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 4, "block_sizes": {-1: 128, "type": "static"}}},
    ]
}


@pytest.mark.parametrize("original", [OLD, NEW], ids=["dict", "list"])
def test_the_group_size_reaches_modelopts_configuration_and_leaves_its_own_alone(original: dict[str, Any]) -> None:
    before = json.dumps(original, default=str)
    config = quantizing.configuration(SimpleNamespace(INT4_AWQ_CFG=original), JOB)
    assert json.dumps(config).count('"-1": 64') == 1
    assert json.dumps(original, default=str) == before


def test_formats_without_groups_are_taken_as_they_are() -> None:
    mtq = SimpleNamespace(FP8_DEFAULT_CFG={"algorithm": "max"})
    assert quantizing.configuration(mtq, replace(JOB, method="fp8", group_size=None)) == {"algorithm": "max"}


def test_a_long_sample_is_not_cut_by_the_tokenizer() -> None:
    arguments = quantizing.export_arguments(replace(JOB, sequence_length=5675), Path("texts"), 3)
    assert arguments["calib_max_seq_length"] == arguments["tokenizer_max_seq_length"] == 5675


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (replace(JOB, method="gptq"), "expected one of the methods int4_awq, fp8, int8_sq, found 'gptq'"),
        (replace(JOB, samples=None), "int4_awq needs calibration samples, found none"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused(job: QuantizeJob, line: str) -> None:
    with pytest.raises(StageError, match=line):
        quantizing.quantize(job, python=None, progress=None)  # type: ignore[arg-type]


def test_what_was_written_is_read_back() -> None:
    assert quantizing.written_method(GOLDEN / "checkpoints/llama-int4-awq", "engine") == "int4_awq"


@pytest.mark.parametrize(
    ("content", "line"),
    [(None, "FileNotFoundError"), ("{}", "KeyError"), ('{"quantization": []}', "TypeError"), ("{", "JSONDecodeError")],
)
def test_a_folder_that_does_not_say_what_it_is_is_refused(tmp_path: Path, content: str | None, line: str) -> None:
    if content is not None:
        (tmp_path / "hf_quant_config.json").write_text(content)
    with pytest.raises(StageError, match=line):
        quantizing.written_method(tmp_path, "pytorch")


def test_an_unknown_algorithm_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    assert quantizing.written_method(tmp_path, "pytorch") == "NVFP4"


def test_a_missing_trtllm_build_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StageError, match="expected the command trtllm-build, found none"):
        building.find_command()


def test_weights_and_tensorrt_llms_own_config_do_not_travel(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "checkpoints/llama-int4-awq", tmp_path / "checkpoint"))
    for name in ("tokenizer.json", "README.md", ".gitattributes", "model.safetensors.index.json", "pytorch_model.bin"):
        (folder / name).write_text("{}")
    assert [path.name for path in sorted(folder.iterdir()) if building._travels(path)] == ["tokenizer.json"]
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert building._travels(folder / "config.json")
