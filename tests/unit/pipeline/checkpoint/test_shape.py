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


@pytest.mark.parametrize(
    "weight",
    [
        "model.layers.1.mlp.experts.0.up_proj.weight",
        "model.layers.0.block_sparse_moe.experts.7.w1.weight",
        "model.layers.0.block_sparse_moe.input_linear.weight",
        "model.layers.0.mlp.input_linear.weight",
        "model.layers.3.mlp.experts.gate_up_proj_blocks",
        "transformer.blocks.0.ffn.experts.mlp.w1",
        "backbone.layers.1.mixer.experts.0.up_proj.weight",
    ],
)
def test_weights_of_experts_are_known_by_every_familys_names(weight: str) -> None:
    assert mixture_of_experts({"num_experts": 8}, "x", ["lm_head.weight", weight]) is not None


@pytest.mark.parametrize("config", [{"n_routed_experts": 8}, {"model_type": "deepseek_v3"}, {}])
def test_a_model_that_holds_no_experts_is_dense_whatever_its_config_counts(config: dict[str, Any]) -> None:
    weights = ["backbone.layers.0.mixer.up_proj.weight", "lm_head.weight", "model.layers.0.mlp.gate_proj.weight"]
    assert mixture_of_experts(config, "dense-30B-A3B", weights) is None
