"""A lane: what it can do, and on which hardware. What a lane without a class of its own does stands here."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.lanes.methods import FLOAT_BITS, METHODS, Bounds
from pipeline.lanes.quantizers import whole_experts
from runtime.artifact import LaneName
from runtime.artifact.lanes import ServedLane

# CUDA lanes: bfloat16 and the 4-bit kernels (Marlin) begin with Ampere.
OLDEST_SM = 80
# FP8 tensor cores begin with Ada.
FP8_SM = 89
# vLLM has no INT8 kernels for Blackwell (its table of supported hardware for quantization).
LAST_INT8_SM = 99
HOPPER_SM, BLACKWELL_SM = 90, 100
# What a CPU has no arithmetic for.
EMULATED_ON_CPU = frozenset({"fp8"})
# Where configs describe what sees; and model types whose text alone vLLM loads by the code for those that see.
VISION_KEYS = ("vision_config", "vision_tower_config", "visual", "img_processor", "mm_vision_tower")
LOADED_AS_SEEING = ("qwen3_5",)
# Model types that have recurrent layers of Mamba's first kind.
FIRST_MAMBA = frozenset({"jamba", "mamba", "falcon_mamba"})
# Model types whose experts are chosen, or activated, as vLLM's INT8 kernel for CPUs cannot (docs/models.md).
INT8_EXPERTS_ON_GPUS = frozenset({"deepseek_v3", "deepseek_v32", "glm4_moe", "gpt_oss"})


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
        tunes: whether its engine's options can be tuned.
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
    tunes: bool = False

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
