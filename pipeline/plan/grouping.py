"""What of a model is quantized: the size of groups, what stays in float and why, and what several GPUs ask of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.checkpoint.float_layers import HEAD, OUTSIDE, ROUTER, STEP, TOWER
from pipeline.checkpoint.layers import LayerTable, LinearLayer
from pipeline.checkpoint.shape import Shape
from pipeline.plan.diagnostics import Diagnostics

HEADS = ("re:.*lm_head",)
MOE_GATES = (r"re:.*mlp\.gate$", r"re:.*block_sparse_moe\.gate$", r"re:.*shared_expert_gate$", r"re:.*router.*")
# Layers whose widths hold no group stay in float where they are few: at most this part of the weights.
ODD_PART = 0.02
# Why each kind stays in float. What is not among them (norms, draft layers) a quantizer leaves alone by itself.
REASONS = {
    HEAD: "heads lose most and weigh least",
    ROUTER: "gates choose the experts, where a small error changes everything",
    TOWER: "vision and audio are not served, and their widths hold no groups",
    STEP: "narrow, and what sets the pace of a recurrent layer loses most",
    OUTSIDE: "outside the decoder's layers, small and sensitive",
}


def kept_patterns(table: LayerTable, *, moe: bool, diagnostics: Diagnostics) -> tuple[str, ...]:
    """Return the patterns of what stays in float, and tell of each why."""
    patterns = {HEAD: [*HEADS], ROUTER: [*MOE_GATES] if moe else []}
    for reason in REASONS:
        found = patterns.setdefault(reason, [])
        for name in table.kept.get(reason, ()):
            if not any(re.match(pattern.removeprefix("re:"), name) for pattern in found):
                found.append(_tower_pattern(name) if reason == TOWER else _pattern(name))
    for reason, found in patterns.items():
        if found:
            diagnostics.decide("kept in float", ", ".join(found), REASONS[reason])
    return tuple(pattern for found in patterns.values() for pattern in found)


def odd_layers(table: LayerTable, size: int, parallel: int) -> tuple[LinearLayer, ...] | None:
    """Return the few layers whose inputs hold no groups of this size; none where they are more than a few."""
    odd = table.ungrouped(size, parallel)
    few = sum(layer.parameters for layer in odd) <= ODD_PART * table.linear_parameters
    return odd if few else None


def odd_patterns(odd: Iterable[LinearLayer], size: int, diagnostics: Diagnostics) -> tuple[str, ...]:
    """Return the patterns of layers that stay in float for their widths, and tell why."""
    patterns = tuple(dict.fromkeys(_pattern(layer.name) for layer in odd))
    if patterns:
        widths = ", ".join(str(width) for width in sorted({layer.inputs for layer in odd}))
        diagnostics.decide("kept in float", ", ".join(patterns), f"their {widths} inputs hold no groups of {size}")
    return patterns


def check_parallel(shape: Shape, table: LayerTable, parallel: int, diagnostics: Diagnostics) -> None:
    """Check that several GPUs can share the model."""
    if expected := unshared(shape, table, parallel):
        fitting = [str(size) for size in (1, 2, 4, 8) if unshared(shape, table, size) is None]
        next_step = f"set it to {' or '.join(fitting)}" if fitting else "choose another model"
        diagnostics.problem("TENSOR_PARALLEL_SIZE", expected, str(parallel), next_step)


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


def _pattern(name: str) -> str:
    """Return a pattern for a module whatever lies before its layer's number: loaders rename what lies there.

    >>> _pattern("model.layers.*.mlp.experts.*.down_proj"), _pattern("embed_out")
    ('re:.*\\\\.mlp\\\\.experts\\\\.\\\\d+\\\\.down_proj$', 're:.*embed_out$')
    """
    inside = name.partition(".*.")[2]
    if not inside:
        return f"re:.*{re.escape(name.rpartition('.')[2])}$"
    return rf"re:.*\.{re.escape(inside)}$".replace(r"\.\*\.", r"\.\d+\.")


def _tower_pattern(name: str) -> str:
    """Return a pattern for a whole part of a model.

    >>> _tower_pattern("model.vision_tower.encoder.layers.*.fc1"), _tower_pattern("multi_modal_projector.linear_1")
    ('re:.*vision_tower\\\\..*', 're:.*multi_modal_projector\\\\..*')
    """
    parts = [part for part in name.split(".") if part not in {"model", "thinker", "*"}]
    return rf"re:.*{re.escape(parts[0])}\..*"
