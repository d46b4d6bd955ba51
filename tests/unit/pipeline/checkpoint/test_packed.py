"""Packed weights have the shapes that they had in float."""

from __future__ import annotations

import pytest

from pipeline.checkpoint.packed import unpacked
from pipeline.checkpoint.tensors import Tensor


def tensors(**shapes: tuple[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: Tensor(dtype, shape, 1) for name, (dtype, shape) in shapes.items()}


@pytest.mark.parametrize(
    ("found", "scheme", "shape"),
    [
        # compressed-tensors: 4 and 8 bits in 32, two 4-bit floats in a byte.
        ({"weight_packed": ("I32", (256, 16)), "weight_scale": ("BF16", (256, 1))}, "W4A16", (256, 128)),
        ({"weight_packed": ("I32", (256, 32)), "weight_scale": ("BF16", (256, 1))}, "W8A16", (256, 128)),
        ({"weight_packed": ("U8", (256, 64)), "weight_scale": ("F8_E4M3", (256, 8))}, "NVFP4", (256, 128)),
        ({"weight": ("I8", (256, 128)), "weight_scale": ("BF16", (256, 1))}, "W8A8", (256, 128)),
        ({"weight": ("F8_E4M3", (256, 128)), "weight_scale_inv": ("F32", (2, 1))}, "FP8", (256, 128)),
        # GPTQ packs the inputs, AWQ the outputs.
        ({"qweight": ("I32", (16, 256)), "scales": ("F16", (1, 256)), "qzeros": ("I32", (1, 32))}, "W4A16", (256, 128)),
        ({"qweight": ("I32", (128, 32)), "scales": ("F16", (1, 256)), "qzeros": ("I32", (1, 32))}, "W4A16", (256, 128)),
        ({"weight": ("U8", (256, 64)), "weight_scale": ("F8_E4M3", (256, 8))}, "NVFP4", (256, 128)),
    ],
)
def test_a_packed_matrix_has_its_shape_in_float(
    found: dict[str, tuple[str, tuple[int, ...]]], scheme: str, shape: tuple[int, ...]
) -> None:
    named = {f"model.layers.0.mlp.up_proj.{name}": value for name, value in found.items()}
    made = unpacked(tensors(**named), [scheme])
    assert {name: tensor.shape for name, tensor in made.items()} == {"model.layers.0.mlp.up_proj.weight": shape}


def test_experts_in_blocks_have_their_shape_in_float() -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    packed = {
        f"{name}_blocks": ("U8", (4, 96, 2, 16)),
        f"{name}_scales": ("U8", (4, 96, 2)),
        f"{name}_bias": ("BF16", (4, 96)),
    }
    made = unpacked(tensors(**packed), ["MXFP4"])
    assert made[name].shape == (4, 96, 64)
    assert set(made) == {name, f"{name}_bias"}


def test_what_is_packed_in_an_unknown_way_says_nothing() -> None:
    assert unpacked(tensors(**{"a.qweight": ("I32", (16, 256))}), ["W4A16"]) == {}
    assert unpacked(tensors(**{"a.weight": ("BF16", (16, 256))}), ["W4A16", "FP8"]) == {}
    assert unpacked(tensors(**{"a.weight": ("BF16", (16, 256))}), ["sparse"]) == {}
