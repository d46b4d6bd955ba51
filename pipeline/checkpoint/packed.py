"""The matrices of a checkpoint that came quantized, with the shapes that they had before they were packed.

X.weight_packed                       compressed-tensors: outputs × inputs, 32 / bits weights in an I32, or 2 in a U8
X.qweight, X.scales                   GPTQ and AWQ: packed along either side; the scales tell the outputs
X.weight (U8) beside X.weight_scale   ModelOpt's 4-bit floats: outputs × inputs / 2
X_blocks, X_scales                    gpt-oss: experts × outputs × blocks × 16 bytes of two weights
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pipeline.checkpoint.tensors import Tensor

SCHEME_BITS = re.compile(r"W(\d)A|(?:NV|MX)?FP(\d)")
BLOCK_WEIGHTS = 32
# Names that a weight in float never has.
PACKED = (".weight_packed", ".qweight", ".weight_scale", ".weight_scale_inv", "_blocks")
# Types of weights that are in no float of two bytes or more.
ROUNDED = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2", "I8", "U8", "I32"})
FLOATS = frozenset({"BF16", "F16", "F32"})
# How the weights of a format are named; those with `F8` may be told by their type as well. Others have many ways.
MARKS: Mapping[str, tuple[str, ...]] = {
    "awq": (".qweight",),
    "gptq": (".qweight", ".B"),
    "fp8": ("F8", ".weight_scale", ".weight_scale_inv"),
    "fbgemm_fp8": ("F8", ".weight_scale"),
    "mxfp4": ("_blocks", ".weight_packed"),
    "gpt_oss_mxfp4": ("_blocks", ".weight_packed"),
}
QUANTIZED_NAME = re.compile(
    r"(?:weight_packed|qweight|_scales?(?:_\w+)?|scaling_factors?(?:_\w+)?|zero_points?|_blocks|absmax|SCB|codes|W_q)$"
)
# What lies beside a packed weight.
BESIDE = (".scales", ".qzeros", ".g_idx", ".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx")
MORE_BESIDE = (".weight_scale_2", ".weight_scale_inv", ".weight_global_scale", ".input_scale", ".input_global_scale")


def unpacked(tensors: Mapping[str, Tensor], schemes: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of a quantized checkpoint as they were in float; empty where it is packed in an unknown way.

    Args:
        tensors: from its headers.
        schemes: in the field's notation; where they have different bits nothing is known.
    """
    bits = {int(match[1] or match[2]) for scheme in schemes if (match := SCHEME_BITS.match(scheme))}
    if len(bits) != 1:
        return {}
    (width,) = bits
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if name.endswith((*BESIDE, *MORE_BESIDE)) or (last.endswith("_scales") and len(tensor.shape) == 3):
            continue
        if last == "weight_packed" and len(tensor.shape) == 2:
            found[f"{module}.weight"] = _shaped(tensor, tensor.shape[0], tensor.shape[1] * _in_one(tensor, width))
        elif last == "qweight":
            scales = tensors.get(f"{module}.scales")
            if scales is None or len(tensor.shape) != 2 or not scales.shape or not scales.shape[-1]:
                return {}
            outputs = scales.shape[-1]
            found[f"{module}.weight"] = _shaped(tensor, outputs, tensor.elements * _in_one(tensor, width) // outputs)
        elif last.endswith("_blocks") and len(tensor.shape) == 4:
            experts, outputs, blocks, _ = tensor.shape
            found[name.removesuffix("_blocks")] = _shaped(tensor, experts, outputs, blocks * BLOCK_WEIGHTS)
        elif last == "weight" and tensor.dtype == "U8" and f"{name}_scale" in tensors and len(tensor.shape) == 2:
            found[name] = _shaped(tensor, tensor.shape[0], tensor.shape[1] * _in_one(tensor, width))
        else:
            found[name] = tensor
    return found


def packed_weight(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of a weight that came quantized, by its own or by its type; none where all are in float."""
    named = (name for name in tensors if name.endswith(PACKED))
    rounded = (name for name, tensor in tensors.items() if name.endswith(".weight") and tensor.dtype in ROUNDED)
    return next(named, None) or next(rounded, None)


def float_weight(tensors: Mapping[str, Tensor], form: str) -> str | None:
    """Return a matrix in float of a model that holds no weight as its format has them; none where one is there.

    Args:
        tensors: from its headers.
        form: as its config names it; of one that is not known any weight that came quantized is taken.
    """
    marks = MARKS.get(form)
    for name, tensor in tensors.items():
        if (marks is None or "F8" in marks) and tensor.dtype in ROUNDED and len(tensor.shape) > 1:
            return None
        if QUANTIZED_NAME.search(name) if marks is None else name.endswith(marks):
            return None
    return next((name for name, tensor in tensors.items() if len(tensor.shape) > 1 and tensor.dtype in FLOATS), None)


def _in_one(tensor: Tensor, bits: int) -> int:
    """Return how many weights one element holds."""
    return {"I32": 32, "U8": 8, "I8": 8}.get(tensor.dtype, bits) // bits


def _shaped(tensor: Tensor, *shape: int) -> Tensor:
    return Tensor(tensor.dtype, shape, tensor.size)
