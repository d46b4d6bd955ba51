"""The lanes and their methods: what each can do, on which hardware, and how good it must be.

A lane is one entry of `LANES` here, one module in `quantize/`, one in `build/` and one in the runtime's `engines/`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.lanes.quantizers import whole_experts
from runtime.artifact import LaneName
from runtime.artifact.lanes import SERVED_LANES, ServedLane

# CUDA lanes: bfloat16 and the 4-bit kernels (Marlin) begin with Ampere.
OLDEST_SM = 80
# FP8 tensor cores begin with Ada.
FP8_SM = 89
# vLLM has no INT8 kernels for Blackwell (its table of supported hardware for quantization).
LAST_INT8_SM = 99
HOPPER_SM, BLACKWELL_SM = 90, 100
# Of weights that are not quantized.
FLOAT_BITS = 16
# Below this many parameters a model loses more, to 4 bits most of all: it gets small groups and wide bounds.
SMALL_MODEL = 1_000_000_000
# What a CPU has no arithmetic for.
EMULATED_ON_CPU = frozenset({"fp8"})


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


# No GPU is newer.
NEWEST_SM = 999


@dataclass(frozen=True, slots=True)
class Loadable:
    """A format that an engine loads as it is.

    Attributes:
        format: `quant_method`, as config.json names it.
        schemes: those of the format that it can run; empty for all.
        least_sm: compute capability from which it can.
        most_sm: the last one that can.
    """

    format: str
    schemes: tuple[str, ...]
    least_sm: int = 0
    most_sm: int = NEWEST_SM


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
class PlainServer:
    """Another server that loads an artifact, and its command, with the fields `repo` and `context`."""

    name: str
    command: str


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane: one way to run a model, on one kind of device. All that differs between lanes stands here.

    Attributes:
        served: what the runtime knows of it.
        engine: what loads the chat model.
        module: what its modules in `quantize/`, `build/` and the runtime's `engines/` are called.
        help: what the command line says of its flag.
        methods: what its quantizer offers.
        eight_bit: the method that `8bit` means.
        loads: what its engine can load as it is, of sources that came quantized.
        eager: whether the engine runs without compiling.
        batch: sequences at once unless told otherwise.
        latency: what it must reach unless told otherwise.
        quantizer: distributions that the quantizer's environment must hold.
        perplexity: whether its engine tells how probable a given text is; otherwise the same first choice is all that
            can be held against the float model.
        compiles: whether an engine is compiled beforehand out of a checkpoint in a format of its own.
        backend: TensorRT-LLM: what its quantizer writes for.
        builder: the function in its module in `build/`.
        told_dtype: whether its engine is told the type to compute in; otherwise it takes the model's own.
        streams: of the throughput test.
        samples_variable: says how much text a method looks at.
        library: what the hub calls what loads it.
        plain_server: another server that can load it.
    """

    served: ServedLane
    engine: str
    module: str
    help: str
    methods: tuple[str, ...]
    eight_bit: str
    loads: tuple[Loadable, ...]
    eager: bool
    batch: int
    latency: LatencyBounds
    quantizer: tuple[str, ...] = ("llmcompressor",)
    perplexity: bool = True
    compiles: bool = False
    backend: Literal["engine", "pytorch"] = "engine"
    builder: str = "build"
    told_dtype: bool = False
    streams: int = 64
    samples_variable: str = "AWQ_NSAMPLES"
    library: str = "vllm"
    plain_server: PlainServer | None = None

    @property
    def name(self) -> LaneName:
        """What it is called."""
        return self.served.name

    @property
    def flag(self) -> str:
        """What asks for it on the command line."""
        return f"--{self.name}"

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions of which one must be installed."""
        return self.served.packages

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on an NVIDIA GPU."""
        return self.served.on_gpu

    @property
    def device(self) -> str:
        """What PyTorch calls its device."""
        return self.served.device

    def reference_dtype(self, dtype: str) -> str:
        """The type that the float model computes in to be compared with an artifact that computes in `dtype`."""
        return dtype if self.told_dtype else "auto"

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that its engine can load of sources that came quantized."""
        return tuple(dict.fromkeys(entry.format for entry in self.loads))

    def loading_refusal(self, quantized_format: str, schemes: Sequence[str], sm: int | None) -> Refusal | None:
        """Return why its engine cannot load a source that came quantized; none when it can."""
        known = [entry for entry in self.loads if entry.format == quantized_format]
        if not known:
            return Refusal(f"{self.name} does not load {quantized_format}")
        for scheme in schemes:
            entry = next((entry for entry in known if scheme in (entry.schemes or schemes)), None)
            if entry is None:
                listed = ", ".join(scheme for entry in known for scheme in entry.schemes)
                return Refusal(f"of {quantized_format}, {self.name} loads {listed}")
            if sm is not None and self.on_gpu and not entry.least_sm <= sm <= entry.most_sm:
                until = f"up to sm{entry.most_sm}" if sm > entry.most_sm else f"from sm{entry.least_sm} on"
                return Refusal(f"{scheme} runs {until} in {self.name}, this is sm{sm}")
        return None

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
        if not self.on_gpu:
            return self.eight_bit, "8bit on a CPU is INT8, which it computes natively; FP8 would be emulated"
        native = "native FP8 arithmetic" if (sm or 0) >= FP8_SM else "FP8 weights with 16-bit arithmetic"
        return self.eight_bit, f"8bit on sm{sm} is FP8: {native}"

    def refusal(self, method: str, sm: int | None, *, allow_emulated: bool) -> Refusal | None:
        """Return why the hardware cannot run a method; none when it can."""
        if method in EMULATED_ON_CPU and not self.on_gpu and not allow_emulated:
            reason = "FP8 is emulated on a CPU, ten times slower than INT8"
            return Refusal(reason, "use int8, or --allow-emulated to measure it")
        if method == "int8" and self.on_gpu and sm is not None and sm > LAST_INT8_SM:
            return Refusal(f"vLLM has no INT8 kernels for sm{sm}", "use fp8")
        return None

    def known_incompatibility(self, config: Mapping[str, Any], method: str) -> Refusal | None:
        """Return why a model is known not to work with a method here; none when nothing is known."""
        return None

    def unserved(self, config: Mapping[str, Any], method: str) -> str | None:
        """Return why its engine, as it is installed here, does not load a model; none when nothing is known.

        The artifact may be served elsewhere, so this refuses nothing.
        """
        if self.on_gpu:
            return None
        kind = str(config.get("model_type", ""))
        seeing = any(config.get(key) for key in VISION_KEYS) or kind.startswith(LOADED_AS_SEEING)
        if seeing and importlib.util.find_spec("torchvision") is None:
            return f"vLLM loads {kind} through torchvision, of which PyTorch's build for CPUs is not installed here"
        if kind in FIRST_MAMBA:
            return f"vLLM has no kernel for CPUs of the recurrent layers of {kind}"
        if kind in INT8_EXPERTS_ON_GPUS and method == "int8":
            return f"vLLM has no INT8 kernel for CPUs that chooses among experts as {kind} does"
        return None

    def quantizing_refusal(self, config: Mapping[str, Any], method: str) -> Refusal | None:
        """Return why its quantizer cannot quantize a model; none when nothing is known."""
        kind = (
            whole_experts(config) if "llmcompressor" in self.quantizer and METHODS[method].bits < FLOAT_BITS else None
        )
        if kind is None:
            return None
        return Refusal(f"llm-compressor cannot take apart the experts of {kind}", "use none, or choose another model")

    def experts_refusal(self, method: str) -> Refusal | None:
        """Return why a method is not for mixtures of experts here; none when it is."""
        return None

    def bounds(self, method: str) -> tuple[Bounds, Bounds]:
        """Return what a method must reach here: for models under a billion parameters, and for the others."""
        return METHODS[method].small, METHODS[method].large


# Where configs describe what sees; and model types whose text alone vLLM loads by the code for those that see.
VISION_KEYS = ("vision_config", "vision_tower_config", "visual", "img_processor", "mm_vision_tower")
LOADED_AS_SEEING = ("qwen3_5",)
# Model types that have recurrent layers of Mamba's first kind.
FIRST_MAMBA = frozenset({"jamba", "mamba", "falcon_mamba"})
# Model types whose experts are chosen, or activated, as vLLM's INT8 kernel for CPUs cannot (docs/models.md).
INT8_EXPERTS_ON_GPUS = frozenset({"deepseek_v3", "deepseek_v32", "glm4_moe", "gpt_oss"})

# TensorRT-LLM lists no weight-only INT4 kernels for the desktop Blackwell, and no INT8 from Blackwell on
# (its support matrix, release 1.2).
NO_INT4_SM = frozenset({120, 121})
# Model types for which TensorRT-LLM 1.2 compiles no engine.
NOT_COMPILED = frozenset({"gpt_oss", "qwen3_next", "llama4", "llama4_text", "deepseek_v3", "deepseek_v32", "mistral3"})
PYTORCH_WAY_OUT = "set TRT_BACKEND=pytorch"
# Model types that ModelOpt 0.47 fails on for the PyTorch backend, after calibration or in it (docs/models.md).
EXPERTS_IN_ONE_TENSOR = frozenset({"gpt_oss", "llama4", "llama4_text"})
NOT_CALIBRATED = frozenset({"qwen2_5_vl", "qwen2_5_vl_text"})


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

    def experts_refusal(self, method: str) -> Refusal | None:
        """Return why a method is not for mixtures of experts here; none when it is."""
        if self.compiles or method != "int4_awq":
            return None
        # It looks for a matrix an expert, under names of four families, when hours of calibration are over.
        return Refusal("ModelOpt exports no AWQ of mixtures of experts", "use 8bit, or set TRT_BACKEND=engine")

    def known_incompatibility(self, config: Mapping[str, Any], method: str) -> Refusal | None:
        """Return why a model is known not to work with a method here; none when nothing is known."""
        kind = str(config.get("model_type", ""))
        if not self.compiles:
            if kind == "mixtral" and method == "int4_awq":
                reason = "TensorRT-LLM's PyTorch backend lists no AWQ for Mixtral"
                return Refusal(reason, "use 8bit, or set TRT_BACKEND=engine")
            if kind in EXPERTS_IN_ONE_TENSOR and method == "int8_sq":
                return Refusal("ModelOpt exports no INT8 of experts that lie in one tensor", "use fp8")
            if kind in NOT_CALIBRATED:
                return Refusal(f"ModelOpt does not get through {kind}'s rotary embedding", "build it for another lane")
            return None
        if kind in NOT_COMPILED:
            return Refusal(f"TensorRT-LLM 1.2 compiles no engine for {kind}", PYTORCH_WAY_OUT)
        if kind in {"qwen3", "qwen3_moe"} and method == "int4_awq":
            reason = "TensorRT-LLM cannot compile Qwen3 with AWQ (its issue 10739)"
            return Refusal(reason, f"{PYTORCH_WAY_OUT}, or use 8bit")
        return None


# vLLM's kernels for formats that came quantized, by its own tables (`model_executor/layers/quantization`): 4-bit floats
# run on older GPUs too, with 16-bit arithmetic.
VLLM_LOADS = (
    Loadable("compressed-tensors", ("W4A16", "W8A16", "FP8", "W8A16 (FP8)", "NVFP4", "NVFP4A16", "MXFP4", "MXFP8")),
    Loadable("compressed-tensors", ("W8A8",), most_sm=LAST_INT8_SM),
    Loadable("compressed-tensors", ("W4A8 (FP8)",), least_sm=HOPPER_SM, most_sm=HOPPER_SM),
    Loadable("awq", ("W4A16",)),
    Loadable("gptq", ("W4A16", "W8A16")),
    Loadable("fp8", ("FP8",)),
    Loadable("auto-round", ("W2A16", "W3A16", "W4A16", "W8A16")),
    Loadable("mxfp4", ("MXFP4",)),
    Loadable("modelopt", ("FP8", "NVFP4", "NVFP4A16", "MXFP8", "mixed")),
)

PLAIN_VLLM = PlainServer("vLLM", "vllm serve {repo} --max-model-len {context}")

TRT = TrtLane(
    served=SERVED_LANES["trt"],
    engine="trt",
    module="trt",
    help="The TensorRT-LLM lane.",
    methods=("int4_awq", "fp8", "int8_sq"),
    eight_bit="fp8",
    # Which methods of it run where, `refusal` tells.
    loads=(Loadable("trt-llm", ()),),
    eager=False,
    # TRT_MAX_BATCH_SIZE is required, so that this serves only for checks before it is set.
    batch=1,
    latency=LatencyBounds(ttft_ms=500, itl_ms=50, tokens_per_s=100),
    quantizer=("nvidia-modelopt", "tensorrt-llm"),
    perplexity=False,
    compiles=True,
    told_dtype=True,
    samples_variable="TRT_CALIB_SIZE",
    library="tensorrt_llm",
)

VLLM = Lane(
    served=SERVED_LANES["vllm"],
    engine="vllm",
    module="vllm",
    help="The vLLM lane, on an NVIDIA GPU.",
    methods=("awq", "gptq", "fp8", "int8", "none"),
    eight_bit="fp8",
    loads=VLLM_LOADS,
    eager=False,
    batch=256,
    latency=LatencyBounds(ttft_ms=500, itl_ms=50, tokens_per_s=100),
    plain_server=PLAIN_VLLM,
)

CPU = Lane(
    served=SERVED_LANES["cpu"],
    engine="vllm",
    module="vllm",
    help="The vLLM lane, on any processor.",
    methods=("awq", "gptq", "fp8", "int8", "none"),
    eight_bit="int8",
    # Its kernels for the CPU: INT8, and 4 bits alone. FP8 would be emulated.
    loads=(
        Loadable("compressed-tensors", ("W4A16", "W8A8")),
        Loadable("awq", ("W4A16",)),
        Loadable("gptq", ("W4A16",)),
    ),
    # Compiling takes two minutes on a CPU and makes it no faster.
    eager=True,
    batch=16,
    # Wide, for shared and busy machines: this lane proves that a model works, not that it is fast.
    latency=LatencyBounds(ttft_ms=10_000, itl_ms=1_000, tokens_per_s=2),
    streams=8,
    plain_server=PLAIN_VLLM,
)

LANES: dict[str, Lane] = {lane.name: lane for lane in (TRT, VLLM, CPU)}

TRT_PYTORCH = replace(
    TRT,
    engine="trt-pytorch",
    methods=("int4_awq", "fp8"),
    loads=(
        Loadable("modelopt", ("W4A16", "FP8")),
        Loadable("modelopt", ("NVFP4",), least_sm=BLACKWELL_SM),
        Loadable("mxfp4", ("MXFP4",)),
    ),
    batch=256,
    quantizer=("nvidia-modelopt",),
    compiles=False,
    backend="pytorch",
    builder="build_folder",
)

# Every lane in each of its styles. Lanes with the same engine have the same modules.
STYLES: tuple[Lane, ...] = (*LANES.values(), TRT_PYTORCH)


def lane_of_artifact(name: str, engine: str) -> Lane:
    """Return the lane that an artifact's metadata names, with the backend of its engine.

    Raises:
        KeyError: there is none.
    """
    return next((lane for lane in STYLES if (lane.name, lane.engine) == (name, engine)), LANES[name])


def lane_of(name: str, trt_backend: str) -> Lane:
    """Return the lane with a name; TensorRT-LLM's with the backend that `TRT_BACKEND` asks for.

    Raises:
        KeyError: there is none.
    """
    return TRT_PYTORCH if (name, trt_backend) == (TRT.name, TRT_PYTORCH.backend) else LANES[name]
