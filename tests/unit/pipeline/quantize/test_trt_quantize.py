"""Quantizing and compiling for TensorRT-LLM, up to the calls; the chain through the stand-in is in test_trt_chain."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.build import trt as building
from pipeline.quantize import QuantizeJob, trt_checkpoint, trt_folder
from pipeline.quantize import trt as quantizing
from pipeline.stages.stage import StageError

GOLDEN = Path(__file__).parents[3] / "data/trt"
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
    config = trt_folder.configuration(SimpleNamespace(INT4_AWQ_CFG=original), JOB)
    assert json.dumps(config).count('"-1": 64') == 1
    assert json.dumps(original, default=str) == before


def test_formats_without_groups_are_taken_as_they_are() -> None:
    mtq = SimpleNamespace(FP8_DEFAULT_CFG={"algorithm": "max"})
    assert trt_folder.configuration(mtq, replace(JOB, method="fp8", group_size=None)) == {"algorithm": "max"}


def test_int8_is_smoothed_less_than_modelopt_presets() -> None:
    mtq = SimpleNamespace(INT8_SMOOTHQUANT_CFG={"algorithm": "smoothquant"})
    config = trt_folder.configuration(mtq, replace(JOB, method="int8_sq", group_size=None))
    assert config["algorithm"] == {"method": "smoothquant", "alpha": 0.8}
    assert mtq.INT8_SMOOTHQUANT_CFG == {"algorithm": "smoothquant"}


def test_a_long_text_is_not_cut_by_the_tokenizer() -> None:
    arguments = trt_checkpoint.arguments(JOB, Path("out"), 3, 5675)
    assert arguments["calib_max_seq_length"] == arguments["tokenizer_max_seq_length"] == 5675


class Letters:
    """A tokenizer with a token for each letter, and a begin token 0 where asked."""

    def __init__(self, *, begins: bool) -> None:
        self.prefix = [0] if begins else []

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self.prefix + [ord(letter) for letter in text]}

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return "".join(map(chr, tokens))


@given(st.lists(st.lists(st.integers(65, 90), min_size=8, max_size=60), min_size=1, max_size=9), st.booleans())
def test_calibration_texts_have_one_length_so_that_none_is_padded(samples: list[list[int]], begins: bool) -> None:
    tokenizer = Letters(begins=begins)
    given_samples = [tokenizer.prefix + sample for sample in samples]
    texts, length = trt_checkpoint.equal_length_texts(given_samples, tokenizer)  # type: ignore[arg-type]
    assert len(texts) == len(samples)
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    assert min(map(len, encoded)) >= length
    assert max(map(len, encoded)) - length <= len(tokenizer.prefix)
    assert not any(tokens[1:2] == [0] for tokens in encoded)
    whole = [token for sample in given_samples for token in sample if token]
    kept = [token for tokens in encoded for token in tokens if token]
    assert kept == whole[: len(kept)]
    assert len(whole) - len(kept) < len(samples) * (1 + len(tokenizer.prefix))


def test_the_quantizer_gets_the_model_under_a_plain_name_and_without_its_code(tmp_path: Path) -> None:
    model = tmp_path / "prompts"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}')
    (model / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    (model / "evil.py").write_text("raise SystemExit")
    (model / "model.safetensors").write_bytes(b"weights")
    before = Path.cwd()
    with trt_checkpoint.working_directory(model, ["one", "two"]) as place:
        assert Path.cwd() == place.resolve()
        assert sorted(path.name for path in trt_checkpoint.MODEL.iterdir()) == [
            "config.json",
            "model.safetensors",
            "tokenizer_config.json",
        ]
        assert json.loads((trt_checkpoint.MODEL / "config.json").read_bytes()) == {"model_type": "llama"}
        assert (trt_checkpoint.MODEL / "model.safetensors").read_bytes() == b"weights"
        lines = (trt_checkpoint.TEXTS / "train.jsonl").read_text().splitlines()
        assert [json.loads(line)["text"] for line in lines] == ["one", "two"]
        assert str(trt_checkpoint.MODEL) == trt_checkpoint.arguments(JOB, Path("out"), 2, 8)["model_dir"]
    assert Path.cwd() == before
    assert (model / "evil.py").is_file()


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
    assert [path.name for path in sorted(folder.iterdir()) if building._is_auxiliary(path)] == ["tokenizer.json"]
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert building._is_auxiliary(folder / "config.json")
