"""Engines and checkpoints on golden folders, as TensorRT-LLM 1.2 writes their config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from runtime.artifact import ArtifactError
from runtime.engines.trt.folders import CheckpointFolder, EngineFolder, Weights

GOLDEN = Path(__file__).parents[3] / "data/trt"


@pytest.mark.parametrize(
    ("name", "weights", "batch", "lengths"),
    [
        ("llama-int4-awq", Weights("LlamaForCausalLM", "float16", "int4_awq", 128, 1), 16, (1000, 1150, 8192)),
        ("mistral-fp8-tp2", Weights("MistralForCausalLM", "bfloat16", "fp8", None, 2), 64, (5525, 5675, 8192)),
        ("llama-int8-sq", Weights("LlamaForCausalLM", "float16", "int8_sq", None, 1), 32, (5525, 5675, 8192)),
    ],
)
def test_an_engines_limits_are_read(name: str, weights: Weights, batch: int, lengths: tuple[int, ...]) -> None:
    engine = EngineFolder.read(GOLDEN / "engines" / name)
    assert engine.version == "1.2.1"
    assert engine.weights == weights
    assert engine.max_batch_size == batch
    assert (engine.max_input_len, engine.max_seq_len, engine.max_num_tokens) == lengths
    assert engine.reuses_blocks


def test_a_checkpoints_facts_are_read() -> None:
    checkpoint = CheckpointFolder.read(GOLDEN / "checkpoints/llama-int4-awq")
    assert checkpoint.weights == Weights("LlamaForCausalLM", "float16", "int4_awq", 64, 1)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "engines/mistral-fp8-tp2", tmp_path / "engine"))


def change(folder: Path, *keys: str, value: Any = None) -> None:
    """Set a value in config.json, or remove it when it is none."""
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    node = config
    for key in keys[:-1]:
        node = node[key]
    if value is None:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    path.write_text(json.dumps(config))


def refusal(folder: Path, reader: Any = EngineFolder) -> str:
    with pytest.raises(ArtifactError) as error:
        reader.read(folder)
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", ["max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens"])
def test_a_missing_limit_is_named(engine: Path, name: str) -> None:
    change(engine, "build_config", name)
    assert f"expected {name}, found none; compile it again" in refusal(engine)


@pytest.mark.parametrize("value", ["many", [1]])
def test_a_limit_that_is_no_number_is_refused(engine: Path, value: Any) -> None:
    change(engine, "build_config", "max_batch_size", value=value)
    assert "expected an engine's limits" in refusal(engine)


def test_an_engine_that_lacks_a_rank_is_refused(engine: Path) -> None:
    (engine / "rank1.engine").unlink()
    assert "expected rank1.engine (2 in all), found none" in refusal(engine)


def test_without_paged_attention_no_blocks_are_reused(engine: Path) -> None:
    change(engine, "build_config", "plugin_config", "use_paged_context_fmha", value=False)
    assert not EngineFolder.read(engine).reuses_blocks


def test_a_prompt_is_no_longer_than_a_step(engine: Path) -> None:
    assert EngineFolder.read(engine).longest_prompt == 5525
    change(engine, "build_config", "max_num_tokens", value=2048)
    assert EngineFolder.read(engine).longest_prompt == 2048


def test_one_kind_of_folder_is_not_taken_for_another(tmp_path: Path) -> None:
    checkpoint = GOLDEN / "checkpoints/llama-int4-awq"
    assert "expected a compiled engine, found a checkpoint" in refusal(checkpoint)
    assert "found a compiled engine" in refusal(GOLDEN / "engines/llama-int8-sq", CheckpointFolder)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert "found something else" in refusal(tmp_path)
    assert "found a Hugging Face model" in refusal(tmp_path, CheckpointFolder)


@pytest.mark.parametrize(
    ("content", "line"),
    [(None, "found no config.json"), ("{", "expected JSON"), ("[]", "expected a JSON object, found list")],
)
def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path, content: str | None, line: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert line in refusal(tmp_path)
