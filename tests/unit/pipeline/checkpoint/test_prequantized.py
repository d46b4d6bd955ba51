"""Sources that come quantized are recognized."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.checkpoint.config_reader import ConfigError
from pipeline.checkpoint.prequantized import recognize
from pipeline.lanes import CPU, TRT_PYTORCH, VLLM, Lane

GROUP = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 64}}}}


@pytest.mark.parametrize(
    ("stated", "name", "method", "scheme", "group"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "x", "awq", "W4A16", 128),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, "x", "awq", "W4A16", 64),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "x", "gptq", "W8A16", None),
        ({"quant_method": "fp8"}, "x", "fp8", "FP8", None),
        ({"quant_method": "compressed-tensors"} | GROUP, "x", "awq", "W4A16", 64),
        ({"quant_method": "compressed-tensors"} | GROUP, "m-gptq", "gptq", "W4A16", 64),
        ({"quant_method": "intel/auto-round", "bits": 4}, "x", "auto-round", "W4A16", None),
        (GROUP, "x", "awq", "W4A16", 64),
    ],
)
def test_a_quantized_source_is_recognized_by_its_config(
    stated: dict[str, Any], name: str, method: str, scheme: str, group: int | None
) -> None:
    found = recognize({"quantization_config": stated}, name, bytes_per_weight=2.0)
    assert found is not None
    assert (found.method, found.scheme, found.group_size) == (method, scheme, group)
    assert found.recognized_by.startswith("config.json")


def tensors(form: str, weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    """A config as compressed-tensors writes it."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


INT4 = {"num_bits": 4, "type": "int", "group_size": 128}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
INT8_TOKENS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
FP8_TOKENS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
FP4_GROUP = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}


@pytest.mark.parametrize(
    ("stated", "scheme", "method", "group"),
    [
        (tensors("pack-quantized", INT4, None), "W4A16", "awq", 128),
        (tensors("pack-quantized", INT8 | {"group_size": 128}, None), "W8A16", "w8a16", 128),
        (
            tensors("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}, INT8_TOKENS),
            "W8A8",
            "int8",
            None,
        ),
        (tensors("float-quantized", {"num_bits": 8, "type": "float"}, FP8_TOKENS), "FP8", "fp8", None),
        (tensors("naive-quantized", {"num_bits": 8, "type": "float"}, None), "W8A16 (FP8)", "w8a16 (fp8)", None),
        (tensors("nvfp4-pack-quantized", FP4_GROUP, FP4_GROUP), "NVFP4", "nvfp4", 16),
        (tensors("nvfp4-pack-quantized", FP4_GROUP, None), "NVFP4A16", "nvfp4a16", 16),
        (tensors("mxfp4-pack-quantized", FP4_GROUP | {"group_size": 32}, None), "MXFP4", "mxfp4", 32),
        (tensors("int-quantized", INT4, INT8_TOKENS), "W4A8", "w4a8", 128),
        (
            tensors("pack-quantized", INT4, FP8_TOKENS),
            "W4A8 (FP8)",
            "w4a8 (fp8)",
            128,
        ),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "MXFP4", "mxfp4", None),
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, "FP8", "fp8", None),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, "FP8", "fp8", None),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, "NVFP4", "nvfp4", 16),
        (
            {"quant_method": "modelopt", "quantization": {"quant_algo": "W4A16_AWQ", "group_size": 128}},
            "W4A16",
            "int4_awq",
            128,
        ),
        ({"quant_method": "modelopt_fp4", "quant_algo": "NVFP4"}, "NVFP4", "nvfp4", None),
        ({"quant_method": "gptq", "bits": "8", "group_size": 128.0, "sym": True}, "W8A16", "gptq", 128),
    ],
)
@pytest.mark.parametrize("name", ["x", "Model-INT8-AWQ-W4A16", "model-fp8"])
def test_the_config_decides_whatever_the_name_says(
    stated: dict[str, Any], scheme: str, method: str, group: int | None, name: str
) -> None:
    found = recognize({"quantization_config": stated}, name, bytes_per_weight=None)
    assert found is not None
    assert (found.scheme, found.method, found.group_size) == (scheme, method, group)
    inside = recognize({"text_config": {"quantization_config": stated}}, name, bytes_per_weight=2.0)
    assert inside == found


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}}, "config_groups, found none"),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}, "config_groups, found none"),
        ({"quant_method": "compressed-tensors"}, "config_groups, found none"),
        ({"format": "dense"}, "quant_method, found none"),
        ({"bits": 4}, "quant_method, found none"),
        ({"load_in_8bit": False, "llm_int8_threshold": 6.0}, "quant_method, found none"),
    ],
)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_config_that_says_nothing_of_the_weights_is_no_quantization(
    stated: dict[str, Any], told: str, key: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{key}\.{told}"):
        recognize({key: stated}, "x", bytes_per_weight=2.0)


@pytest.mark.parametrize("key", ["load_in_8bit", "load_in_4bit"])
def test_bitsandbytes_is_known_without_its_name(key: str) -> None:
    found = recognize({"quantization_config": {key: True, "llm_int8_threshold": 6.0}}, "x", bytes_per_weight=2.0)
    assert found is not None
    assert found.format == "bitsandbytes"


def test_what_stays_in_float_and_zero_points_are_read_too() -> None:
    weights = {"num_bits": 4, "type": "int", "group_size": 128, "symmetric": False}
    found = recognize({"quantization_config": tensors("pack-quantized", weights, None)}, "x", bytes_per_weight=None)
    assert found is not None
    assert (found.kept, found.symmetric) == (("lm_head",), False)
    gptq = recognize(
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "sym": False}}, "x", bytes_per_weight=None
    )
    assert gptq is not None
    assert gptq.symmetric is False


def test_groups_of_layers_that_differ_are_told_apart() -> None:
    stated = tensors("mixed-precision", INT4, None)
    second = tensors("int-quantized", INT8, INT8_TOKENS)["config_groups"]["group_0"]
    stated["config_groups"]["group_1"] = second | {"format": "int-quantized"}
    found = recognize({"quantization_config": stated}, "x", bytes_per_weight=None)
    assert found is not None
    assert (found.schemes, found.method) == (("W4A16", "W8A8"), "mixed")


@pytest.mark.parametrize(
    ("lane", "sm", "kind", "schemes", "refused"),
    [
        (VLLM, 90, "compressed-tensors", ["W8A16"], None),
        (VLLM, 90, "compressed-tensors", ["NVFP4"], None),
        (VLLM, 100, "compressed-tensors", ["W8A8"], "W8A8 runs up to sm99 in vllm, this is sm100"),
        (VLLM, 80, "compressed-tensors", ["W4A8 (FP8)"], "runs from sm90 on in vllm, this is sm80"),
        (VLLM, 90, "compressed-tensors", ["W4A16", "W4A4"], "of compressed-tensors, vllm loads W4A16"),
        (VLLM, 80, "mxfp4", ["MXFP4"], None),
        (VLLM, 90, "modelopt", ["FP8"], None),
        (VLLM, 90, "modelopt", ["W4A16"], "of modelopt, vllm loads FP8"),
        (VLLM, 90, "gptq", ["W3A16"], "of gptq, vllm loads W4A16, W8A16"),
        (VLLM, 90, "bitsandbytes", ["W4A16"], "vllm does not load bitsandbytes"),
        (CPU, None, "compressed-tensors", ["W4A16"], None),
        (CPU, None, "compressed-tensors", ["W8A16"], "of compressed-tensors, cpu loads W4A16, W8A8"),
        (CPU, None, "compressed-tensors", ["FP8"], "cpu loads W4A16, W8A8"),
        (CPU, None, "mxfp4", ["MXFP4"], "cpu does not load mxfp4"),
        (TRT_PYTORCH, 90, "modelopt", ["FP8"], None),
        (TRT_PYTORCH, 90, "modelopt", ["NVFP4"], "NVFP4 runs from sm100 on in trt, this is sm90"),
        (TRT_PYTORCH, 90, "compressed-tensors", ["FP8"], "trt does not load compressed-tensors"),
    ],
)
def test_a_lane_loads_what_its_engine_has_kernels_for(
    lane: Lane, sm: int | None, kind: str, schemes: list[str], refused: str | None
) -> None:
    refusal = lane.loading_refusal(kind, schemes, sm)
    assert (refusal is None) if refused is None else (refusal is not None and refused in refusal.reason)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("org/Model-AWQ", "awq"),
        ("Model-7B-GPTQ-Int4", "gptq"),
        ("model.w4a16", "compressed-tensors"),
        ("model-compressed-tensors", "compressed-tensors"),
        ("Model-int4-AutoRound", "auto-round"),
    ],
)
def test_or_by_its_name_where_the_weights_do_not_speak_against_it(name: str, kind: str) -> None:
    found = recognize({}, name, bytes_per_weight=0.6)
    assert found is not None
    assert found.format == kind
    assert recognize({}, name, bytes_per_weight=2.0) is None


@pytest.mark.parametrize("name", ["hawqeye", "org/llama", "awqward-7b"])
def test_a_word_inside_a_word_is_no_format(name: str) -> None:
    assert recognize({}, name, bytes_per_weight=0.6) is None
