"""What a quantizer wrote is read back from the folder, and a difference from the job is an error."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.tensors import BITS
from pipeline.quantize import QuantizeJob, read_back
from pipeline.stages.stage import StageError

LAYER = "model.layers.0.self_attn.q_proj"
EXPERTS = {"model_type": "mixtral", "num_local_experts": 8}

Entry = tuple[str, tuple[int, ...]]


def int8(module: str) -> dict[str, Entry]:
    return {f"{module}.weight": ("I8", (64, 64)), f"{module}.weight_scale": ("BF16", (64, 1))}


def packed(module: str, *, group: int = 32, zero: bool = True) -> dict[str, Entry]:
    entries = {f"{module}.weight_packed": ("I32", (64, 8)), f"{module}.weight_scale": ("BF16", (64, 64 // group))}
    return entries | ({f"{module}.weight_zero_point": ("I32", (8, 64 // group))} if zero else {})


INT8 = {
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None},
    "input_activations": {"num_bits": 8, "dynamic": True},
}
AWQ = {
    "weights": {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32},
    "input_activations": None,
}
AROUND: dict[str, Entry] = {
    "model.embed_tokens.weight": ("BF16", (256, 64)),
    "lm_head.weight": ("BF16", (256, 64)),
    "model.layers.0.input_layernorm.weight": ("BF16", (64,)),
    "model.layers.0.mamba.A_log": ("F32", (64, 16)),
    "model.layers.0.mamba.conv1d.weight": ("BF16", (64, 1, 4)),
}


def write(folder: Path, tensors: Mapping[str, Entry], group: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries, end = {}, 0
    for name, (kind, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * BITS[kind] // 8
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    stated = {"quantization_config": {"config_groups": {"group_0": group}}} if group else {}
    (folder / "config.json").write_text(json.dumps({**config, **stated}))


def job(folder: Path, method: str = "int8", **changes: Any) -> QuantizeJob:
    grouped = method == "awq"
    made = QuantizeJob(
        method, folder / "model", folder / "out", 32 if grouped else None, not grouped, (), None, 64, 0, "cpu"
    )
    return replace(made, **changes)


def verdict(tmp_path: Path, work: QuantizeJob, tensors: Mapping[str, Entry], group: Mapping[str, Any], **config) -> str:
    write(work.out, tensors, group, config)
    write(work.model, {}, {}, config)
    try:
        written = read_back.read_compressed(work.out)
        read_back.check(work, written, read_back.expected_format(work, grouped=work.method == "awq"))
    except StageError as error:
        return str(error)
    return "as planned"


@pytest.mark.parametrize("zero", [True, False], ids=["with zero points", "symmetric"])
def test_what_was_asked_for_is_found(tmp_path: Path, zero: bool) -> None:
    group = {**AWQ, "weights": {**AWQ["weights"], "symmetric": not zero}}
    work = job(tmp_path, "awq", symmetric=not zero)
    assert verdict(tmp_path, work, AROUND | packed(LAYER, zero=zero), group) == "as planned"
    written = read_back.read_compressed(work.out)
    assert str(written.format).startswith("int4, groups of 32, ")
    assert written.rounded == {LAYER: (64, 64)}
    assert written.share == pytest.approx(4096 / (4096 + 2 * 16384 + 64 * 16 + 256))
    assert read_back.left_in_float(written) == (
        "lm_head",
        "model.embed_tokens",
        "model.layers.*.mamba.A_log",
        "model.layers.*.mamba.conv1d",
    )


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"num_bits": 4}, "a scale for every 64 weights"),
        ({"type": "float"}, "found float8"),
        ({"symmetric": False}, "zero points"),
        ({"group_size": 16}, "a scale for every 16 weights"),
    ],
)
def test_another_format_is_an_error(tmp_path: Path, changed: dict[str, Any], line: str) -> None:
    group = {**INT8, "weights": {**INT8["weights"], **changed}}
    assert line in verdict(tmp_path, job(tmp_path), int8(LAYER), group)


def test_activations_that_stayed_as_they_are_are_an_error(tmp_path: Path) -> None:
    assert "16-bit activations" in verdict(tmp_path, job(tmp_path), int8(LAYER), {**INT8, "input_activations": None})


def test_groups_of_another_size_than_is_stated_are_an_error(tmp_path: Path) -> None:
    found = verdict(tmp_path, job(tmp_path, "awq"), packed(LAYER, group=64), AWQ)
    assert f"expected a scale for every 32 weights of {LAYER}, found one for 64" in found


def test_nothing_rounded_is_an_error(tmp_path: Path) -> None:
    gpt2 = {"transformer.h.0.attn.c_attn.weight": ("BF16", (64, 192))}
    assert "found none that is rounded" in verdict(tmp_path, job(tmp_path), AROUND | gpt2, INT8)


@pytest.mark.parametrize(
    "left",
    [
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.0.w1.weight",
    ],
)
def test_a_layer_left_in_float_is_an_error(tmp_path: Path, left: str) -> None:
    shape = (8, 64, 64) if left.endswith("gate_up_proj") else (64, 64)
    found = verdict(tmp_path, job(tmp_path), int8(LAYER) | {left: ("BF16", shape)}, INT8, **EXPERTS)
    assert f"found {left} in float" in found
    planned = job(tmp_path, kept_in_float=(r"re:.*layers\.1\.",))
    assert verdict(tmp_path, planned, int8(LAYER) | {left: ("BF16", shape)}, INT8, **EXPERTS) == "as planned"


@pytest.mark.parametrize(
    "kept",
    [
        "lm_head",
        "model.vision_tower.encoder.layers.0.mlp.fc1",
        "model.layers.0.mlp.router",
        "model.layers.0.feed_forward.chooser",
        "model.layers.0.mamba.dt_proj",
        "model.per_layer_model_projection",
        "model.layers.0.self_attn.k_proj",
    ],
)
def test_what_was_to_stay_in_float_and_is_rounded_is_an_error(tmp_path: Path, kept: str) -> None:
    rounded = int8(kept)
    if kept.endswith("chooser"):
        rounded = {f"{kept}.weight": ("I8", (8, 64)), f"{kept}.weight_scale": ("BF16", (8, 1))}
    beside = {**int8("model.layers.0.mlp.experts.0.up_proj"), **int8("model.layers.0.feed_forward.experts.0.up_proj")}
    work = job(tmp_path, kept_in_float=("model.layers.0.self_attn.k_proj",))
    found = verdict(tmp_path, work, int8(LAYER) | beside | rounded, INT8, **EXPERTS)
    assert f"expected {kept} in float, found rounded weights" in found


def test_a_folder_of_modelopts_is_read_by_its_own_config(tmp_path: Path) -> None:
    stated = {"quantization": {"quant_algo": "W4A16_AWQ", "group_size": 64}}
    tensors = {f"{LAYER}.weight": ("U8", (32, 64)), f"{LAYER}.weight_scale": ("BF16", (64, 1))}
    write(tmp_path, AROUND | tensors, {}, {})
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(stated))
    written = read_back.read_modelopt(tmp_path, "hf_quant_config.json")
    assert written.rounded == {LAYER: (64, 64)}
    assert written.format == read_back.WeightFormat(4, "int", 64, True, 16)


@given(content=st.binary(max_size=40), config=st.recursive(st.none() | st.booleans() | st.text(max_size=4), st.lists))
def test_any_content_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, config: object
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"config_groups": {"group_0": config}}}))
    with pytest.raises(StageError) as refused:
        read_back.read_compressed(folder)
    assert "\n" not in str(refused.value)
