"""How a chat model's weights are stored, by their headers, against what its config says of them."""

from __future__ import annotations

from pipeline.checkpoint.layers import stored_dtype
from pipeline.checkpoint.packed import float_weight
from pipeline.checkpoint.prequantized import PREQUANTIZED, Prequantized
from pipeline.plan.diagnostics import Diagnostics
from pipeline.source import SourceFacts

# What a config says of weights that are none the less stored in float: of the cache alone, or of zeros left out.
IN_FLOAT = (("float",), ("sparse",))


def check_float(facts: SourceFacts, diagnostics: Diagnostics) -> None:
    """Check that a model in float is in one that engines compute in."""
    wide = next((name for name, tensor in facts.tensors.items() if tensor.dtype == "F64"), None)
    if wide and stored_dtype(facts.tensors) is None:
        expected = f"weights in bfloat16, float16 or float32, in {facts.ref}"
        diagnostics.problem("CHAT_MODEL", expected, f"float64 in {wide}", "save it in one of them")


def is_stored_otherwise(facts: SourceFacts, found: Prequantized, diagnostics: Diagnostics) -> bool:
    """Tell of weights that are in float although the config calls them quantized."""
    if found.format == "trt-llm" or found.schemes in IN_FLOAT:
        return False
    name = float_weight(facts.tensors, found.format)
    if name is not None:
        expected = f"weights in {found.format} ({found.scheme}), as {found.recognized_by} of {facts.ref} says"
        kind = f"none, and {name} in {facts.tensors[name].dtype}"
        diagnostics.problem("CHAT_MODEL", expected, kind, PREQUANTIZED)
    return name is not None
