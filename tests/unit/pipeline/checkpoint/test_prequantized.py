"""Sources that come quantized are recognized."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.checkpoint.prequantized import recognize

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
