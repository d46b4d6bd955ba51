"""Linear layers, from the headers of weights: what is rounded, what stays in float, what GPUs cut."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.checkpoint.float_layers import EMBEDDING, HEAD, ROUTER, TOWER
from pipeline.checkpoint.layers import DRAFT_LAYERS, SMALL_PARTS, layer_table, stored_dtype
from pipeline.checkpoint.shape import Shape
from pipeline.checkpoint.tensors import Tensor

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


def tensors(*shapes: tuple[str, tuple[int, ...]], dtype: str = "BF16") -> dict[str, Tensor]:
    return {name: Tensor(dtype, shape, 2) for name, shape in shapes}


def decoder(prefix: str = "model.") -> dict[str, Tensor]:
    found = [
        (f"{prefix}embed_tokens.weight", (256, 64)),
        ("lm_head.weight", (256, 64)),
        (f"{prefix}norm.weight", (64,)),
    ]
    for layer in range(2):
        here = f"{prefix}layers.{layer}"
        found += [
            (f"{here}.self_attn.q_proj.weight", (64, 64)),
            (f"{here}.self_attn.q_proj.bias", (64,)),
            (f"{here}.self_attn.k_proj.weight", (32, 64)),
            (f"{here}.self_attn.v_proj.weight", (32, 64)),
            (f"{here}.self_attn.o_proj.weight", (64, 64)),
            (f"{here}.mlp.gate_proj.weight", (160, 64)),
            (f"{here}.mlp.up_proj.weight", (160, 64)),
            (f"{here}.mlp.down_proj.weight", (64, 160)),
            (f"{here}.input_layernorm.weight", (64,)),
        ]
    return tensors(*found)


def kept(table: Any) -> dict[str, str]:
    return {name: why for why, names in table.kept.items() for name in names}


def test_a_decoder_is_rounded_but_for_embedding_head_and_norms() -> None:
    table = layer_table(CONFIG, decoder())
    assert {layer.name.rpartition(".")[2]: (layer.inputs, layer.count, layer.cut) for layer in table.linear} == {
        "q_proj": (64, 2, "outputs"),
        "k_proj": (64, 2, "outputs"),
        "v_proj": (64, 2, "outputs"),
        "o_proj": (64, 2, "inputs"),
        "gate_proj": (64, 2, "outputs"),
        "up_proj": (64, 2, "outputs"),
        "down_proj": (160, 2, "inputs"),
    }
    assert kept(table)["lm_head"] == HEAD
    assert kept(table)["model.embed_tokens"] == EMBEDDING
    assert table.parameters == sum(tensor.elements for tensor in decoder().values())
    assert table.from_headers


def test_the_headers_agree_with_what_the_config_of_a_usual_decoder_says() -> None:
    shape = Shape.of(CONFIG)
    told, guessed = layer_table(CONFIG, decoder()), layer_table(CONFIG, {})
    assert told.linear_parameters == guessed.linear_parameters == shape.linear_parameters
    assert told.widths == guessed.widths
    assert not guessed.from_headers


def test_a_group_must_divide_each_gpus_share_of_a_layer_that_is_cut() -> None:
    table = layer_table(CONFIG, decoder())
    assert table.group_size(128) == 32
    assert table.group_size(128, parallel=2) is None
    assert {layer.name.rpartition(".")[2] for layer in table.ungrouped(32, parallel=2)} == {"down_proj"}


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model.layers.0.mlp.gate.weight", (8, 64), ROUTER),
        ("model.layers.0.block_sparse_moe.router.layer.weight", (8, 64), ROUTER),
        ("model.layers.0.ffn.chooser.weight", (8, 64), ROUTER),
        ("model.layers.0.mlp.shared_expert_gate.weight", (1, 64), ROUTER),
        ("model.vision_tower.encoder.layers.0.fc1.weight", (538, 72), TOWER),
        ("vision_model.encoder.layers.0.fc1.weight", (538, 72), TOWER),
        ("visual.blocks.0.attn.qkv.weight", (216, 72), TOWER),
        ("model.audio_tower.layers.0.fc1.weight", (100, 72), TOWER),
        ("multi_modal_projector.linear_1.weight", (64, 72), TOWER),
        ("model.layers.2.mlp.up_proj.weight", (160, 64), DRAFT_LAYERS),
        ("mtp.layers.0.mlp.up_proj.weight", (160, 64), DRAFT_LAYERS),
        ("embed_out.weight", (256, 64), HEAD),
        ("transformer.wte.weight", (256, 64), EMBEDDING),
        ("model.layers.0.mixer.conv1d.weight", (64, 1, 4), SMALL_PARTS),
        ("model.layers.0.mixer.A_log", (64, 16), SMALL_PARTS),
    ],
)
def test_what_stays_in_float_has_a_reason(name: str, shape: tuple[int, ...], reason: str) -> None:
    # A router is told by the experts that it lies beside.
    beside = (
        tensors((f"{'.'.join(name.split('.')[:4])}.experts.0.up_proj.weight", (160, 64))) if reason == ROUTER else {}
    )
    table = layer_table(CONFIG | {"num_experts": 8}, decoder() | beside | tensors((name, shape)))
    assert reason in kept(table).values()
    assert len(table.linear) == 7 + len(beside), [layer.name for layer in table.linear]


@pytest.mark.parametrize(
    ("name", "shape", "inputs", "outputs"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj", (8, 64, 192), 64, 192),
        ("model.layers.0.mlp.experts.gate_up_proj", (8, 192, 64), 64, 192),
        ("model.layers.0.mlp.experts.down_proj", (8, 96, 64), 96, 64),
        ("model.layers.0.mlp.experts.down_proj", (8, 64, 96), 96, 64),
    ],
)
def test_experts_in_one_tensor_are_as_many_layers(name: str, shape: tuple[int, ...], inputs: int, outputs: int) -> None:
    table = layer_table(CONFIG | {"num_experts": 8}, decoder() | tensors((name, shape)))
    (layer,) = [layer for layer in table.linear if "experts" in layer.name]
    assert (layer.inputs, layer.outputs, layer.count) == (inputs, outputs, 8)


def test_a_width_that_no_config_tells_is_known() -> None:
    table = layer_table(CONFIG, decoder() | tensors(("model.layers.0.mamba.in_proj.weight", (128, 18))))
    assert 18 in table.widths
    assert [layer.inputs for layer in table.ungrouped(32)] == [18]


def test_conv1d_is_told_from_linear_layers_by_its_shape() -> None:
    first = "transformer.h.0.attn.c_attn.weight"
    assert layer_table(CONFIG, tensors((first, (64, 192)))).conv1d
    assert not layer_table(CONFIG, tensors((first, (192, 64)))).conv1d
    assert layer_table(CONFIG | {"model_type": "gpt2"}, {}).conv1d


def test_the_type_of_the_weights_is_that_of_most() -> None:
    assert stored_dtype(tensors(("a", (8, 8))) | tensors(("b", (2, 2)), dtype="F32")) == "bfloat16"
    assert stored_dtype(tensors(("a", (8, 8)), dtype="I32")) is None
    assert stored_dtype({}) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"intermediate_size": [128, 256]}, {"intermediates": (128, 256)}),
        ({"num_key_value_heads": [2, 1]}, {"key_value_heads": (1, 2)}),
        ({"num_attention_heads": "4", "hidden_size": 64.0}, {"heads": (4,), "hidden": 64}),
        ({"text_config": None}, {"hidden": 64}),
        ({"head_dim": None}, {"attention": 64}),
        ({"head_dim": 0}, {"attention": 64}),
        ({"num_hidden_layers": None, "layers_block_type": ["mamba", "attention", "mlp"]}, {"layers": 3}),
        ({"num_hidden_layers": None, "hybrid_override_pattern": "M*-M"}, {"layers": 4}),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, {"key_value_heads": (), "key_value": 288}),
        ({"multi_query": True, "num_key_value_heads": None}, {"key_value_heads": (1,)}),
        ({"torch_dtype": "torch.float16"}, {"dtype": "float16"}),
    ],
)
def test_a_shape_is_read_as_configs_write_it(config: dict[str, Any], expected: dict[str, Any]) -> None:
    shape = Shape.of(CONFIG | config)
    assert {name: getattr(shape, name) for name in expected} == expected
