"""Several GPUs for one model: what their number must be, and what of the model each of them gets."""

from __future__ import annotations

from pipeline.checkpoint.layers import LayerTable
from pipeline.checkpoint.shape import Shape


def shares(shape: Shape, tensor: int, stages: int) -> list[str]:
    """Say what of a model each GPU gets."""
    told = []
    if tensor > 1:
        each = " or ".join(f"{heads // tensor} of {heads} heads" for heads in shape.heads)
        told.append(f"TENSOR_PARALLEL_SIZE {tensor}: each has {each} of every layer")
        for heads in shape.key_value_heads:
            fewer = heads < tensor
            each = f"1 of {heads}, {tensor // heads} GPUs the same one" if fewer else f"{heads // tensor} of {heads}"
            told.append(f"of keys and values {each}")
        if not shape.key_value_heads:
            told.append("keys and values, one vector for all heads, are on every GPU")
    if stages > 1:
        told.append(
            f"PIPELINE_PARALLEL_SIZE {stages}: {layers_a_stage(shape.layers, stages)} layers at most in a stage"
        )
    return told


def layers_a_stage(layers: int, stages: int) -> int:
    """Return the layers of the fullest stage.

    >>> layers_a_stage(32, 3), layers_a_stage(32, 1)
    (11, 32)
    """
    return -(-layers // stages)


def cache_share(shape: Shape, tensor: int) -> float:
    """Return the part of a layer's KV cache that is on each GPU: a head of it is not cut.

    >>> from types import SimpleNamespace as S
    >>> [cache_share(S(key_value_heads=heads), 8) for heads in ((8,), (2,), ())]
    [0.125, 0.5, 1.0]
    """
    return max(1 / tensor, 1 / max(shape.key_value_heads, default=1))


def unshared(shape: Shape, table: LayerTable, parallel: int) -> str | None:
    """Return what the number of GPUs that share the model would have to be; none where it is that.

    vLLM and TensorRT-LLM ask the same: every GPU gets as many attention heads, and as many heads of keys and values or,
    where there are fewer than GPUs, one that as many others have too. One compressed vector for all heads (DeepSeek's)
    is on every GPU. A layer whose inputs are cut must have as many for each.
    """
    for heads in (*shape.heads, *shape.other_heads):
        if heads % parallel:
            return f"a divisor of the model's {heads} heads"
    for heads in shape.key_value_heads:
        if heads % parallel and parallel % heads:
            return f"a divisor or a multiple of the model's {heads} heads of keys and values"
    cut = next((layer for layer in table.linear if layer.inputs_on(parallel) is None), None)
    return f"a divisor of the {cut.inputs} inputs of {cut.name}" if cut else None
