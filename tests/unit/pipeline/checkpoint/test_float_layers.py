"""Which layers stay in float, on the tensors of the families that people bring."""

from __future__ import annotations

import pytest

from pipeline.checkpoint import float_layers
from pipeline.checkpoint.float_layers import FloatRule

E = 8
MOE = {"num_experts": E}


def rule(*names: str, **config: object) -> FloatRule:
    return FloatRule.of(config, names)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lm_head", float_layers.HEAD),
        ("embed_out", float_layers.HEAD),
        ("model.embed_tokens", float_layers.EMBEDDING),
        ("transformer.wte", float_layers.EMBEDDING),
        ("model.embed_tokens_per_layer", float_layers.EMBEDDING),
        ("model.vision_tower.encoder.layers.0.mlp.fc1", float_layers.TOWER),
        ("vision_model.encoder.layers.3.self_attn.q_proj", float_layers.TOWER),
        ("visual.blocks.0.attn.qkv", float_layers.TOWER),
        ("visual.merger.mlp.0", float_layers.TOWER),
        ("model.multi_modal_projector.linear_1", float_layers.TOWER),
        ("model.audio_tower.conformer.layers.0.ffw", float_layers.TOWER),
        ("thinker.audio_tower.layers.0.fc1", float_layers.TOWER),
        ("model.embed_vision.embedding_projection", float_layers.TOWER),
        ("model.per_layer_model_projection", float_layers.OUTSIDE),
        ("model.decoder.project_in", float_layers.OUTSIDE),
        ("model.layers.0.mamba.dt_proj", float_layers.STEP),
        ("model.layers.0.linear_attn.in_proj_ba", float_layers.STEP),
        ("model.layers.0.self_attn.q_proj", None),
        ("model.language_model.layers.0.mlp.gate_proj", None),
        ("transformer.h.0.mlp.c_fc", None),
        ("gpt_neox.layers.1.attention.query_key_value", None),
        ("backbone.layers.0.mixer.in_proj", None),
        ("model.decoder.layers.0.fc1", None),
    ],
)
def test_a_layer_is_told_by_its_place(name: str, reason: str | None) -> None:
    assert rule(name).why(name, (64, 64)) == reason


@pytest.mark.parametrize("place", ["model.layers.0.mamba", "backbone.layers.3.mixer", "model.layers.7.mamba"])
def test_a_mixer_of_mambas_first_kind_stays_in_float_whole(place: str) -> None:
    """vLLM computes it in float, and ends where it finds it rounded; it rounds those of the second kind."""
    parts = [f"{place}.{part}" for part in ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")]
    beside = f"{place.rpartition('.')[0]}.feed_forward.up_proj"
    for names in (parts, [f"{part}.weight" for part in parts]):
        first = rule(*names, beside)
        assert first.why(f"{place}.in_proj", (64, 64)) == first.why(f"{place}.out_proj", (64, 64)) == float_layers.MIXER
        assert first.why(f"{place}.x_proj", (64, 64)) == float_layers.STEP
        assert first.why(beside, (64, 64)) is None
    second = rule(*(part for part in parts if "x_proj" not in part))
    assert second.why(f"{place}.in_proj", (64, 64)) is None


@pytest.mark.parametrize(
    ("router", "experts"),
    [
        ("model.layers.0.mlp.gate", "model.layers.0.mlp.experts.0.gate_proj"),
        ("model.layers.0.block_sparse_moe.gate", "model.layers.0.block_sparse_moe.experts.0.w1"),
        ("model.layers.0.mlp.router", "model.layers.0.mlp.experts.gate_up_proj"),
        ("model.layers.0.block_sparse_moe.router.layer", "model.layers.0.block_sparse_moe.input_linear"),
        ("model.layers.0.feed_forward.chooser", "model.layers.0.feed_forward.experts.0.up_proj"),
        ("model.layers.0.router.proj", "model.layers.0.experts.down_proj"),
        ("model.layers.0.mlp.shared_expert_gate", "model.layers.0.mlp.experts.0.up_proj"),
    ],
)
def test_a_router_is_told_whatever_it_is_called(router: str, experts: str) -> None:
    found = rule(router, experts, **MOE)
    rows = 1 if router.endswith("shared_expert_gate") else E
    assert found.why(router, (rows, 64)) == float_layers.ROUTER
    assert found.why(experts, (64, 64)) is None


@pytest.mark.parametrize("rows", [E, 64])
def test_layers_beside_the_experts_are_no_routers(rows: int) -> None:
    """Gemma 4 has its experts beside the attention, and a shared expert's gate projection is an expert's."""
    beside = rule("model.layers.0.experts.down_proj", "model.layers.1.mlp.experts.0.up_proj", **MOE)
    assert beside.why("model.layers.0.self_attn.k_proj", (rows, 64)) is None
    assert beside.why("model.layers.0.mlp.gate_proj", (rows, 64)) is None
    assert beside.why("model.layers.1.mlp.shared_expert.gate_proj", (rows, 64)) is None
    assert beside.why("model.layers.1.mlp.shared_experts.gate_proj", (rows, 64)) is None


def test_the_experts_of_a_part_are_counted() -> None:
    names = ("language_model.model.layers.0.feed_forward.experts.gate_up_proj",)
    found = FloatRule.of({"text_config": {"num_local_experts": E}}, names)
    assert found.experts == E
    assert found.why("language_model.model.layers.0.feed_forward.chooser", (E, 64)) == float_layers.ROUTER
