"""Sources that come quantized, recognized by their config first and by their name second."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.lanes import METHODS
from runtime.defaults import TRT_GROUP_SIZES
from runtime.engines.trt.folders import METHOD_OF_ALGORITHM, is_checkpoint

# A word in a model's name, and the format that it stands for.
NAMES = {
    "compressed-tensors": "compressed-tensors",
    "w4a16": "compressed-tensors",
    "autoround": "auto-round",
    "auto-round": "auto-round",
    "awq": "awq",
    "gptq": "gptq",
}

# What stands for TensorRT-LLM in a name, and beside it for a format.
TRT_NAME = re.compile(r"(?<![a-z0-9])trt(?:-?llm)?(?![a-z0-9])", re.IGNORECASE)
TRT_FORMAT = re.compile(r"(?<![a-z0-9])(?:awq|fp8|8-?bit|int-?8)(?![a-z0-9])", re.IGNORECASE)
TRT_FORMATS = {"awq": "int4_awq", "fp8": "fp8", "8bit": "fp8", "int8": "int8_sq"}


@dataclass(frozen=True, slots=True)
class Prequantized:
    """The quantization of a source that somebody else quantized.

    Attributes:
        format: `quant_method`, as config.json names it; `trt-llm` for a checkpoint of TensorRT-LLM's.
        method: the nearest of our own names.
        scheme: the field's notation where it is known.
        group_size: weights that share a scale, where the config says so.
        recognized_by: what gave it away.
    """

    format: str
    method: str
    scheme: str
    group_size: int | None
    recognized_by: str


def recognize(config: Mapping[str, Any], name: str, *, bytes_per_weight: float | None) -> Prequantized | None:
    """Recognize a source that is quantized already; none for a float model.

    Args:
        config: its `config.json`.
        name: its hub id or folder name.
        bytes_per_weight: size of the weight files over the number of weights, where known. A name alone is not
            believed when every weight has its two bytes.
    """
    if is_checkpoint(config):
        stated = config.get("quantization") or {}
        method = _algorithm(stated)
        group = int(stated.get("group_size") or TRT_GROUP_SIZES[0]) if method == "int4_awq" else None
        return Prequantized(
            "trt-llm",
            method,
            _scheme_of(method, stated),
            group,
            "config.json (TensorRT-LLM)",
        )
    stated = config.get("quantization_config") or config.get("compression_config")
    if isinstance(stated, Mapping):
        kind = str(stated.get("quant_method") or "compressed-tensors").lower().replace("intel/", "")
        bits, group = _bits(stated), _group_size(stated)
        if kind == "modelopt":
            method = _algorithm(stated)
            scheme = _scheme_of(method, stated)
            return Prequantized(kind, method, scheme, group, "config.json (modelopt)")
        return Prequantized(kind, _method(kind, bits, name), _scheme(kind, bits), group, f"config.json ({kind})")
    if bytes_per_weight is not None and bytes_per_weight > 1.5:
        return None
    if (word := TRT_NAME.search(name)) and (format_ := TRT_FORMAT.search(name)):
        method = TRT_FORMATS[format_[0].lower().replace("-", "")]
        recognized_by = f"its name ({word[0]}, {format_[0]})"
        return Prequantized("trt-llm", method, METHODS[method].scheme, None, recognized_by)
    for text, kind in NAMES.items():
        if re.search(rf"(?<![a-z0-9]){text}(?![a-z])", name.lower()):
            return Prequantized(kind, _method(kind, 4, name), "W4A16", None, f"its name ({text})")
    return None


def _algorithm(stated: Mapping[str, Any]) -> str:
    """Return our name for TensorRT-LLM's `quant_algo`; its own in small letters where we have none."""
    algorithm = stated.get("quant_algo")
    return METHOD_OF_ALGORITHM.get(str(algorithm), str(algorithm).lower()) if algorithm else "none"


def _scheme_of(method: str, stated: Mapping[str, Any]) -> str:
    known = METHOD_OF_ALGORITHM.values()
    return METHODS[method].scheme if method in known else str(stated.get("quant_algo") or "float")


def _bits(stated: Mapping[str, Any]) -> int:
    for key in ("bits", "w_bit", "weight_bits"):
        if isinstance(stated.get(key), int):
            return int(stated[key])
    weights = _first_group(stated).get("weights") or {}
    return int(weights.get("num_bits", 8 if stated.get("quant_method") == "fp8" else 4))


def _group_size(stated: Mapping[str, Any]) -> int | None:
    for key in ("group_size", "q_group_size"):
        if isinstance(stated.get(key), int) and stated[key] > 0:
            return int(stated[key])
    size = (_first_group(stated).get("weights") or {}).get("group_size")
    return int(size) if size else None


def _first_group(stated: Mapping[str, Any]) -> Mapping[str, Any]:
    groups = stated.get("config_groups") or {}
    return next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}


def _method(kind: str, bits: int, name: str) -> str:
    if kind == "compressed-tensors":
        if bits == 8:
            return "fp8" if "fp8" in name.lower() else "int8"
        return "gptq" if "gptq" in name.lower() else "awq"
    return kind


def _scheme(kind: str, bits: int) -> str:
    if kind == "fp8":
        return "FP8"
    return "W8A8" if kind == "compressed-tensors" and bits == 8 else f"W{bits}A16"
