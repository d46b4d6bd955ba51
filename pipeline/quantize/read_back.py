"""What a quantizer wrote, read back from the folder's config and its weights' headers, and held against the job.

A library that changed, or an architecture that it does not see through, writes a folder that looks whole and is float
in large parts, or rounds what was to stay. So a difference is an error, and there is no artifact.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint.config_reader import ConfigError, read_object
from pipeline.checkpoint.float_layers import FloatRule
from pipeline.checkpoint.tensors import HeaderError, Tensor, tensors_in
from pipeline.quantize.job import QuantizeJob
from pipeline.stages.stage import StageError

# Types of stored weights that hold no float of two bytes or more.
ROUNDED = frozenset({"F8_E4M3", "F8_E5M2", "I8", "U8", "I32", "F4"})
# Tensors beside a weight that make it a rounded one, by the library that wrote them.
SCALES = (".weight_scale", ".weights_scaling_factor", ".weight_scale_inv", ".per_channel_scale")
PACKED = ".weight_packed"
WEIGHT = ".weight"

# What else lies beside a weight.
_BESIDE = re.compile(r"\.(?:weights?_(?:scale|zero|shape|g_idx|scaling)|input_|pre_quant|prequant|activation_scaling)")

# Convolutions over neighbouring tokens have a side of that many at most.
WIDEST_KERNEL = 4

OTHER_LIBRARY = "the quantizer's release may not fit; run `make setup`, then the same command"


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How a rounded weight is stored.

    Attributes:
        bits: of a weight.
        kind: int or float.
        group_size: weights that share a scale; none where a whole row or matrix does.
        symmetric: whether there is no zero point.
        activations: bits of the activations; 16 where they stay as they are.
    """

    bits: int
    kind: str
    group_size: int | None
    symmetric: bool
    activations: int

    def __str__(self) -> str:
        groups = f"groups of {self.group_size}" if self.group_size else "no groups"
        zero = "symmetric" if self.symmetric else "with zero points"
        return f"{self.kind}{self.bits}, {groups}, {zero}, {self.activations}-bit activations"


@dataclass(frozen=True, slots=True)
class Written:
    """What a folder holds.

    Attributes:
        format: as its config states it.
        rounded: modules whose weights are rounded, with the shape of the matrix before it was packed.
        kept: tensors of two dimensions or more in float, with their shapes.
    """

    format: WeightFormat
    rounded: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, tuple[int, ...]]

    @property
    def share(self) -> float:
        """The part of all weights in matrices that is rounded."""
        in_float = sum(map(math.prod, self.kept.values()))
        rounded = sum(map(math.prod, self.rounded.values()))
        return rounded / (rounded + in_float) if rounded else 0.0


def expected_format(job: QuantizeJob, *, grouped: bool) -> WeightFormat:
    """Return how a job's weights must be stored."""
    if grouped:
        return WeightFormat(4, "int", job.group_size, job.symmetric, 16)
    return WeightFormat(8, "float" if job.method == "fp8" else "int", None, True, 8)


def check(job: QuantizeJob, written: Written, expected: WeightFormat) -> None:
    """Hold what was written against the job.

    Raises:
        StageError: it differs; the message says in what.
    """
    if not written.rounded:
        raise StageError(
            "quantize", f"expected weights in {expected}, found none that is rounded", job.out, OTHER_LIBRARY
        )
    if written.format != expected:
        raise StageError("quantize", f"expected {expected}, found {written.format}", job.out, OTHER_LIBRARY)
    config = read_object(job.model / "config.json")
    rule = FloatRule.of(config, [*written.rounded, *written.kept])

    def stays(name: str, shape: Sequence[int]) -> bool:
        return job.keeps(name) or rule.why(name, shape) is not None

    left = [
        name
        for name, shape in written.kept.items()
        if _is_layer(name, shape) and not stays(name.removesuffix(WEIGHT), shape)
    ]
    if left:
        what = f"expected every linear layer of the decoder rounded, found {_some(left)} in float"
        raise StageError("quantize", what, job.out, OTHER_LIBRARY)
    wrong = [name for name, shape in written.rounded.items() if stays(name, shape)]
    if wrong:
        raise StageError("quantize", f"expected {_some(wrong)} in float, found rounded weights", job.out, OTHER_LIBRARY)


def left_in_float(written: Written) -> tuple[str, ...]:
    """Return the modules whose matrices stayed in float, with `*` for numbers, in order."""
    names = (name.removesuffix(WEIGHT) for name in written.kept)
    return tuple(sorted({re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names}))


def read_compressed(folder: Path) -> Written:
    """Read a folder that llm-compressor wrote.

    Raises:
        StageError: it cannot be understood.
    """
    stated = _stated(folder, "config.json", "quantization_config")
    groups = stated.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise _odd(folder, "one group of layers in quantization_config", groups)
    group = next(iter(groups.values()))
    weights, inputs = _object(folder, group, "weights"), group.get("input_activations")
    bits = _bits(folder, weights)
    tensors = read_tensors(folder)
    has_zero_points = any(name.endswith(".weight_zero_point") for name in tensors)
    if has_zero_points == bool(weights.get("symmetric")):
        raise _odd(folder, f"zero points as {weights.get('symmetric')=} says", f"zero points: {has_zero_points}")
    rounded, kept = _modules(tensors, bits)
    return Written(
        WeightFormat(
            bits=bits,
            kind=str(weights.get("type")),
            group_size=_scale_groups(folder, tensors, rounded, weights.get("group_size")),
            symmetric=bool(weights.get("symmetric")),
            activations=_bits(folder, _object(folder, group, "input_activations")) if inputs else 16,
        ),
        rounded,
        kept,
    )


# ModelOpt's and TensorRT-LLM's `quant_algo`: bits, kind, bits of activations.
ALGORITHMS = {"W4A16_AWQ": (4, "int", 16), "FP8": (8, "float", 8), "W8A8_SQ_PER_CHANNEL": (8, "int", 8)}


def read_modelopt(folder: Path, stated_in: str) -> Written:
    """Read a folder that ModelOpt wrote, or a checkpoint of TensorRT-LLM's.

    Args:
        folder: where it lies.
        stated_in: the file whose `quantization` says what it is.

    Raises:
        StageError: it cannot be understood.
    """
    stated = _stated(folder, stated_in, "quantization")
    algorithm = stated.get("quant_algo")
    if algorithm not in ALGORITHMS:
        raise _odd(folder, f"one of {', '.join(ALGORITHMS)} as quant_algo", algorithm)
    bits, kind, activations = ALGORITHMS[algorithm]
    rounded, kept = _modules(read_tensors(folder), bits)
    group = int(stated["group_size"]) if bits == 4 and stated.get("group_size") else None
    return Written(WeightFormat(bits, kind, group, not stated.get("has_zero_point"), activations), rounded, kept)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the headers of a folder's safetensors files.

    Raises:
        StageError: there is none, or one cannot be read.
    """
    try:
        found = tensors_in(folder)
    except (OSError, HeaderError, ConfigError) as error:
        raise _odd(folder, "weights in *.safetensors with their headers", f"{type(error).__name__}: {error}") from error
    if not found:
        raise _odd(folder, "weights in *.safetensors", "none")
    return found


def _modules(tensors: Mapping[str, Tensor], bits: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Sort the matrices of a model into rounded ones and those in float."""
    scaled = {name.removesuffix(end) for name in tensors for end in SCALES if name.endswith(end)}
    rounded: dict[str, tuple[int, ...]] = {}
    kept: dict[str, tuple[int, ...]] = {}
    for name, tensor in tensors.items():
        module, shape = name.removesuffix(WEIGHT), tensor.shape
        if name.endswith(PACKED):
            rounded[name.removesuffix(PACKED)] = (*shape[:-1], shape[-1] * 32 // bits)
        elif len(shape) < 2 or _BESIDE.search(name):
            continue
        elif tensor.dtype in ROUNDED and module in scaled:
            # ModelOpt puts two rows of four bits into one of bytes.
            rounded[module] = (shape[0] * 2, *shape[1:]) if bits == 4 else shape
        else:
            kept[name] = shape
    return rounded, kept


def _scale_groups(
    folder: Path, tensors: Mapping[str, Tensor], rounded: Mapping[str, tuple[int, ...]], stated: int | None
) -> int | None:
    """Return the size of the groups, by the shapes of scales and weights: what is stated must be what is stored."""
    for module, shape in rounded.items():
        scale = tensors.get(f"{module}.weight_scale")
        if scale is None:
            raise _odd(folder, f"scales beside {module}", "none")
        size, columns = math.prod(shape) // math.prod(scale.shape), shape[-1]
        if size != (stated or columns):
            raise _odd(folder, f"a scale for every {stated or columns} weights of {module}", f"one for {size}")
    return stated


def _is_layer(name: str, shape: Sequence[int]) -> bool:
    """Tell whether a tensor is a linear layer's matrix, or those of several experts: no convolution, and no state."""
    return min(shape) > WIDEST_KERNEL and (len(shape) == 3 or (len(shape) == 2 and name.endswith(WEIGHT)))


def _object(folder: Path, group: object, name: str) -> Mapping[str, Any]:
    found = group.get(name) if isinstance(group, dict) else None
    if not isinstance(found, dict):
        raise _odd(folder, f"{name} in config_groups", found)
    return found


def _bits(folder: Path, stated: Mapping[str, Any]) -> int:
    bits = stated.get("num_bits")
    if not isinstance(bits, int) or bits not in {4, 8}:
        raise _odd(folder, "num_bits of 4 or 8", bits)
    return int(bits)


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} others" if others else first


def _stated(folder: Path, name: str, key: str) -> dict[str, Any]:
    try:
        document = json.loads((folder / name).read_bytes())
    except (OSError, ValueError) as error:
        raise _odd(folder, f"a JSON object in {name}", f"{type(error).__name__}: {error}") from error
    stated = document.get(key) if isinstance(document, dict) else None
    if not isinstance(stated, dict):
        raise _odd(folder, f"{key} in {name}", stated)
    return stated


def _odd(folder: Path, expected: str, found: object) -> StageError:
    return StageError("quantize", f"expected {expected}, found {found}", folder, OTHER_LIBRARY)
