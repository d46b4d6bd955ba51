"""Sources that come quantized: what their config says of it, and only where no config speaks, what their name says.

Where it is said: `quantization_config` in config.json (`compression_config` of old), in ModelOpt's case also
`hf_quant_config.json`, and in a TensorRT-LLM checkpoint `quantization`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.config_reader import ConfigError, ConfigReader
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

# Our own names for schemes; the others are called by their scheme.
METHOD_OF_SCHEME = {"FP8": "fp8", "W8A8": "int8"}
# ModelOpt's algorithms as schemes, where the names differ.
SCHEME_OF_ALGORITHM = {
    "FP8": "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN": "FP8",
    "FP8_PB_WO": "FP8",
    "FP8_BLOCK_SCALES": "FP8",
    "NVFP4": "NVFP4",
    "NVFP4_AWQ": "NVFP4",
    "W4A16_NVFP4": "NVFP4A16",
    "W4A16_AWQ": "W4A16",
    "W4A8_AWQ": "W4A8 (FP8)",
    "W8A16": "W8A16",
    "W8A8_SQ_PER_CHANNEL": "W8A8",
    "MXFP8": "MXFP8",
    "MIXED_PRECISION": "mixed",
}
# Formats of which the name says everything.
SCHEME_OF_FORMAT = {"fp8": "FP8", "fbgemm_fp8": "FP8", "mxfp4": "MXFP4", "gpt_oss_mxfp4": "MXFP4", "mxfp8": "MXFP8"}
# compressed-tensors' way to store weights that are quantized alone.
PACKED = "pack-quantized"
# The group size that tells the microscaling 4-bit float from NVIDIA's, whose groups have 16.
MXFP4_GROUP = 32
BITS_KEYS = ("bits", "w_bit", "weight_bits", "wbits")
GROUP_KEYS = ("group_size", "q_group_size")
KEPT_KEYS = ("ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers")

# What is to be done where the config speaks of another quantization than the weights have.
PREQUANTIZED = "remove quantization_config from config.json, or bring the weights that it speaks of"


@dataclass(frozen=True, slots=True)
class Prequantized:
    """The quantization of a source that somebody else quantized.

    Attributes:
        format: `quant_method`, as config.json names it; `trt-llm` for a checkpoint of TensorRT-LLM's.
        method: the nearest of our own names, else the scheme in small letters.
        schemes: the field's notation, each once where groups of layers differ.
        group_size: weights that share a scale, where the config says so.
        recognized_by: what gave it away.
        symmetric: whether there are no zero points; none where the config does not say.
        kept: what stays in float, as the config names it.
    """

    format: str
    method: str
    schemes: tuple[str, ...]
    group_size: int | None
    recognized_by: str
    symmetric: bool | None = None
    kept: tuple[str, ...] = ()

    @property
    def scheme(self) -> str:
        """The schemes in one text."""
        return " and ".join(self.schemes)


def recognize(config: Mapping[str, Any], name: str, *, bytes_per_weight: float | None) -> Prequantized | None:
    """Recognize a source that is quantized already; none for a float model.

    Args:
        config: its `config.json`.
        name: its hub id or folder name.
        bytes_per_weight: size of the weight files over the number of weights, where known. A name alone is not
            believed when every weight has its two bytes.

    Raises:
        ConfigError: the config speaks of it, but cannot be understood.
    """
    whole = ConfigReader(config)
    if is_checkpoint(config):
        return _of_checkpoint(whole.inside("quantization"))
    inner = whole.inside("text_config")
    for holder in (whole, inner):
        stated = holder.inside("quantization_config", "compression_config")
        if stated.values:
            return _of_config(stated, name)
    if bytes_per_weight is not None and bytes_per_weight > 1.5:
        return None
    return _of_name(name)


def _of_checkpoint(stated: ConfigReader) -> Prequantized:
    method = _algorithm_method(stated)
    group = (stated.number("group_size", least=0) or TRT_GROUP_SIZES[0]) if method == "int4_awq" else None
    scheme = _algorithm_scheme(stated)
    return Prequantized("trt-llm", method, (scheme,), group, "config.json (TensorRT-LLM)", kept=_kept(stated))


def _of_config(stated: ConfigReader, name: str) -> Prequantized:
    kind = _kind(stated).lower().replace("intel/", "")
    by = f"config.json ({kind})"
    kept, group = _kept(stated), _group_size(stated)
    if kind.startswith("modelopt"):
        inner = stated.inside("quantization")
        stated = stated.merged(inner) if inner.values else stated
        group = group or stated.number("group_size", least=0) or None
        scheme = _algorithm_scheme(stated)
        return Prequantized("modelopt", _algorithm_method(stated), (scheme,), group, by, kept=kept or _kept(stated))
    if kind in SCHEME_OF_FORMAT:
        scheme = SCHEME_OF_FORMAT[kind]
        return Prequantized(kind, METHOD_OF_SCHEME.get(scheme, scheme.lower()), (scheme,), group, by, kept=kept)
    if kind != "compressed-tensors":
        symmetric = stated.flag("sym", default=True) if stated.states("sym") else None
        if stated.states("zero_point"):
            symmetric = not stated.flag("zero_point", default=True)
        scheme = f"W{stated.number(*BITS_KEYS) or 4}A16"
        return Prequantized(kind, kind, (scheme,), group, by, symmetric, kept)
    found = list(_groups(stated))
    sparse = not found and stated.states("sparsity_config")
    bits = stated.number(*BITS_KEYS)
    if not found and not sparse and bits is None:
        raise ConfigError(stated.key("config_groups"), "groups of layers that are quantized", "none")
    usual = "sparse" if sparse else f"W{bits}A16"
    schemes = tuple(dict.fromkeys(scheme for scheme, _ in found)) or (usual,)
    symmetric = all(flag for _, flag in found if flag is not None) if found else None
    return Prequantized(kind, _method(schemes, name), schemes, group, by, symmetric, kept)


def _kind(stated: ConfigReader) -> str:
    """Return the format that a config states; what other keys say where it names none.

    Raises:
        ConfigError: none can be told.
    """
    if named := stated.word("quant_method"):
        return named
    if stated.states("config_groups") or stated.states("sparsity_config"):
        return "compressed-tensors"
    for key in ("load_in_8bit", "load_in_4bit"):
        if stated.flag(key, default=False):
            return "bitsandbytes"
    raise ConfigError(stated.key("quant_method"), "the quantization's name", "none")


def _groups(stated: ConfigReader) -> Iterator[tuple[str, bool | None]]:
    """Yield the scheme of each group of layers, and whether it has no zero point."""
    whole_format = stated.word("format")
    for group in stated.sections("config_groups"):
        weights = group.inside("weights")
        if not weights.values:
            continue
        form = group.word("format") or whole_format
        symmetric = weights.flag("symmetric", default=True) if weights.states("symmetric") else None
        yield _scheme(weights, group, form), symmetric


def _scheme(weights: ConfigReader, group: ConfigReader, form: str | None) -> str:
    """Return the notation of a group of layers: bits and kind of its weights, and of its activations."""
    bits, kind = weights.number("num_bits") or 4, (weights.word("type") or "int").lower()
    size = weights.number("group_size", least=-1)
    activations = group.inside("input_activations")
    reads, reads_kind = activations.number("num_bits"), (activations.word("type") or kind).lower()
    if kind == "float" and bits == 4:
        micro = size == MXFP4_GROUP or (form or "").startswith("mxfp4")
        return "MXFP4" if micro else "NVFP4" if reads else "NVFP4A16"
    if kind == "float" and bits == 8:
        if (form or "").startswith("mxfp8"):
            return "MXFP8"
        return "FP8" if reads else "W8A16 (FP8)"
    if reads is None:
        # Without a format and without a word on activations, older configs mean what 8 bits were then.
        silent = form is None and "input_activations" not in group.values and not weights.states("type")
        return "W8A8" if bits == 8 and silent else f"W{bits}A16"
    return f"W{bits}A{reads}" + (" (FP8)" if reads_kind == "float" else "")


def _method(schemes: tuple[str, ...], name: str) -> str:
    """Return our name for what compressed-tensors holds; how 4 bits were found stands in no config, so a name tells."""
    if len(schemes) > 1:
        return "mixed"
    if schemes[0] == "W4A16":
        return "gptq" if "gptq" in name.lower() else "awq"
    return METHOD_OF_SCHEME.get(schemes[0], schemes[0].lower())


def _of_name(name: str) -> Prequantized | None:
    if (word := TRT_NAME.search(name)) and (format_ := TRT_FORMAT.search(name)):
        method = TRT_FORMATS[format_[0].lower().replace("-", "")]
        recognized_by = f"its name ({word[0]}, {format_[0]})"
        return Prequantized("trt-llm", method, (METHODS[method].scheme,), None, recognized_by)
    for text, kind in NAMES.items():
        if re.search(rf"(?<![a-z0-9]){text}(?![a-z])", name.lower()):
            method = _method(("W4A16",), name) if kind == "compressed-tensors" else kind
            return Prequantized(kind, method, ("W4A16",), None, f"its name ({text})")
    return None


def _algorithm_method(stated: ConfigReader) -> str:
    """Return our name for TensorRT-LLM's `quant_algo`; its own in small letters where we have none."""
    algorithm = stated.word("quant_algo")
    return METHOD_OF_ALGORITHM.get(algorithm, algorithm.lower()) if algorithm else "none"


def _algorithm_scheme(stated: ConfigReader) -> str:
    algorithm = stated.word("quant_algo")
    return SCHEME_OF_ALGORITHM.get(algorithm.upper(), algorithm) if algorithm else "float"


def _group_size(stated: ConfigReader) -> int | None:
    size = stated.number(*GROUP_KEYS, least=-1)
    if size is None:
        sizes = [group.inside("weights").number("group_size", least=-1) for group in stated.sections("config_groups")]
        size = min((found for found in sizes if found and found > 0), default=None)
    return size if size and size > 0 else None


def _kept(stated: ConfigReader) -> tuple[str, ...]:
    key = stated.first(KEPT_KEYS)
    listed = stated.values[key] if key else ()
    entries = [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []
    return tuple(entry for entry in entries if isinstance(entry, str) and entry.isprintable())
