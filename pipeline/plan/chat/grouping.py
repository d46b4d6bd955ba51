"""What of a model is quantized: the size of groups, what stays in float and why, and what several GPUs ask of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pipeline.checkpoint.float_layers import HEAD, OUTSIDE, ROUTER, STEP, TOWER
from pipeline.checkpoint.layers import LayerTable, LinearLayer
from pipeline.checkpoint.shape import Shape
from pipeline.checkpoint.sharing import shares, unshared
from pipeline.lanes import Lane
from pipeline.plan.diagnostics import Diagnostics
from runtime.artifact.checks.sharing import unlike
from runtime.artifact.lanes import SERVED_LANES
from runtime.host.machine import Gpu

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


def check_sharing(
    shape: Shape,
    table: LayerTable,
    asked: tuple[int, int],
    gpus: Sequence[Gpu],
    lane: Lane | None,
    diagnostics: Diagnostics,
) -> None:
    """Check that the GPUs here can share a model, and say what each gets.

    Args:
        asked: GPUs that share every layer, and stages of layers.
        gpus: those that are here.
        lane: none where no lane can be used.
    """
    tensor, stages = asked
    most = max(1, len(gpus))
    if stages > 1 and lane is not None and not lane.served.stages:
        able = " or ".join(name for name, served in SERVED_LANES.items() if served.stages)
        diagnostics.problem(
            "PIPELINE_PARALLEL_SIZE", f"1 in the {lane.name} lane", str(stages), f"use the {able} lane, or unset it"
        )
    elif stages > shape.layers:
        expected = f"at most {shape.layers}, the model's layers"
        diagnostics.problem("PIPELINE_PARALLEL_SIZE", expected, str(stages))
    if tensor > most:
        diagnostics.problem("TENSOR_PARALLEL_SIZE", f"at most {most}, the GPUs here", str(tensor))
        return
    if tensor * stages > most:
        expected = f"at most {most // tensor}, for the {most} GPUs here" if gpus else "1 without a GPU"
        shared = f"{stages}, each on {tensor}" if tensor > 1 else str(stages)
        diagnostics.problem("PIPELINE_PARALLEL_SIZE", expected, shared)
    elif odd := unlike(gpus[: tensor * stages]):
        where = "TENSOR_PARALLEL_SIZE" if tensor > 1 else "PIPELINE_PARALLEL_SIZE"
        expected = f"{tensor * stages} GPUs that are alike"
        diagnostics.problem(where, expected, odd, "choose others with CUDA_VISIBLE_DEVICES")
    if divisor := unshared(shape, table, tensor):
        fitting = [str(size) for size in (1, 2, 4, 8) if unshared(shape, table, size) is None]
        next_step = f"set it to {' or '.join(fitting)}" if fitting else "choose another model"
        diagnostics.problem("TENSOR_PARALLEL_SIZE", divisor, str(tensor), next_step)
    elif tensor * stages > 1:
        diagnostics.decide("GPUs a model", tensor * stages, "; ".join(shares(shape, tensor, stages)))


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
