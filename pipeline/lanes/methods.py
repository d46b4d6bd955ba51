"""The methods of quantization: what each stores, and how good it must be."""

from __future__ import annotations

from dataclasses import dataclass

# Of weights that are not quantized.
FLOAT_BITS = 16
# Below this many parameters a model loses more, to 4 bits most of all: it gets small groups and wide bounds.
SMALL_MODEL = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds on quality that a method must reach against the float model.

    Attributes:
        perplexity_ratio: perplexity over that of the float model, at most.
        top1_agreement: part of positions at which both models would choose the same token, at least.
    """

    perplexity_ratio: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class Method:
    """A method of quantization: one way to store weights.

    Attributes:
        name: as the command line has it.
        scheme: the field's notation.
        bits: bits a weight takes, scales not counted.
        grouped: whether groups of weights share a scale.
        zero_point: whether groups do better with a zero point beside the scale.
        calibrated: whether it looks at text.
        small: bounds for models under `SMALL_MODEL` parameters, which lose more.
        large: bounds for the others.
        seconds: quantizing time a parameter and token of calibration, on one CPU core; measured on SmolLM2-135M.
    """

    name: str
    scheme: str
    bits: int
    grouped: bool
    calibrated: bool
    small: Bounds
    large: Bounds
    seconds: float
    zero_point: bool = False


# Between what a sound recipe reaches on a small model and what rounding without calibration does to it
# (docs/quality.md). Even float32 and bfloat16 do not always agree, so bounds need some room. A large model loses less,
# so it must.
FOUR_BIT = (Bounds(1.25, 0.76), Bounds(1.10, 0.88))
EIGHT_BIT = (Bounds(1.05, 0.88), Bounds(1.03, 0.94))
# TensorRT-LLM's 8 bits scale activations beforehand, by one number a matrix, which costs a small model some agreement
# (docs/quality.md). Large models were not measured, so that their bounds stay.
STATIC_EIGHT_BIT = (Bounds(1.05, 0.83), Bounds(1.03, 0.94))
# The same weights in the same engine: only the order of additions differs, which flips a first choice now and then.
FLOAT = (Bounds(1.005, 0.98), Bounds(1.005, 0.98))

METHODS = {
    method.name: method
    for method in (
        Method("none", "BF16", FLOAT_BITS, False, False, *FLOAT, seconds=0.0),
        Method("awq", "W4A16", 4, True, True, *FOUR_BIT, seconds=5e-10, zero_point=True),
        Method("gptq", "W4A16", 4, True, True, *FOUR_BIT, seconds=2e-10, zero_point=True),
        Method("fp8", "FP8", 8, False, False, *EIGHT_BIT, seconds=0.0),
        Method("int8", "W8A8", 8, False, True, *EIGHT_BIT, seconds=1e-10),
        Method("int4_awq", "W4A16", 4, True, True, *FOUR_BIT, seconds=5e-10),
        Method("int8_sq", "W8A8", 8, False, True, *STATIC_EIGHT_BIT, seconds=1e-10),
    )
}
