"""The shape of a model, from its config."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.checkpoint.shape import mixture_of_experts


@pytest.mark.parametrize(
    ("config", "name", "experts"),
    [
        ({"num_experts": 64, "num_experts_per_tok": 8}, "x", 64),
        ({"num_local_experts": 8}, "x", 8),
        ({"n_routed_experts": 256}, "x", 256),
        ({"moe_num_experts": [64, 64]}, "x", 64),
        ({"text_config": {"num_experts": 16}}, "x", 16),
        ({"model_type": "mixtral"}, "x", None),
        ({"model_type": "deepseek_v3"}, "x", None),
        ({"model_type": "qwen3_moe"}, "x", None),
        ({"model_type": "ernie4_5_moe"}, "x", None),
        ({"model_type": "ernie-4.5"}, "x", None),
        ({"model_type": "deepseek-v2"}, "x", None),
        ({"model_type": "llama"}, "Qwen3-30B-A3B-Instruct", None),
        ({"model_type": "llama"}, "big-a22b", None),
    ],
)
def test_a_mixture_of_experts_is_recognized(config: dict[str, Any], name: str, experts: int | None) -> None:
    moe = mixture_of_experts(config, name)
    assert moe is not None
    assert moe.experts == experts


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "llama"}, "Llama-3.1-8B-Instruct"),
        ({"model_type": "llama", "num_experts": 1}, "x"),
        ({"model_type": "llama"}, "alpha-beta-a100box"),
        ({"model_type": "gemma3", "num_local_experts": 0}, "gemma-3-a"),
    ],
)
def test_a_dense_model_is_none(config: dict[str, Any], name: str) -> None:
    assert mixture_of_experts(config, name) is None
