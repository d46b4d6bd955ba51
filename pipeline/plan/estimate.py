"""Estimates of what a build takes: disk, memory and time, from the model's size."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.lanes import Method
from runtime import defaults

# Measured on SmolLM2-135M: the quantizer's process without its model, and an engine's without weights and cache.
PROCESS_BYTES = 1_500_000_000
# Loading llm-compressor; starting vLLM and running the gates.
QUANTIZE_SECONDS, VALIDATE_SECONDS = 20.0, 90.0
# Unpacking the embedded chat model, and training the embedded classifier, on two cores.
EXPORT_SECONDS, TRAIN_SECONDS = 25.0, 60.0
# Text that the gates score, in tokens; a CPU core scores about this many parameters × tokens in a second.
HELD_OUT_TOKENS = 4_000
CORE_RATE = 1.2e10
# An H200 took 34 s for AWQ of 8 billion parameters with 8,192 tokens, of which 14 s were loading.
GPU_SECONDS = 3e-13
# Tuning starts an engine for each candidate, and measures it; as many as there are in the table for one method.
TRIALS, TRIAL_SECONDS = 11, 75.0
# A good link and a local disk.
DOWNLOAD_RATE, COPY_RATE = 50e6, 500e6


@dataclass(frozen=True, slots=True)
class BuildSize:
    """The size of a build, in bytes, parameters and tokens.

    Attributes:
        parameters: weights that a quantizer rounds.
        float_bytes: the float model.
        quantized_bytes: the quantized model.
        tool_bytes: the classifier.
        downloaded: whether the model is downloaded first.
        exported: whether the embedded chat model is unpacked.
        trained: whether the embedded classifier is trained.
        calibration_tokens: tokens that the method looks at.
        method: none where nothing is quantized.
        prequantized: whether the source comes quantized.
        on_gpu: whether it is quantized and validated on a GPU.
        cache_bytes: the KV cache of one sequence.
        parallel: GPUs that share every layer.
        stages: stages of layers.
        stage_share: part of the layers that the fullest stage has.
        outside_bytes: what is no layer's, the embedding and the head: a stage may have it whole.
        cache_share: part of a layer's KV cache that each of the GPUs has which share the layer.
        tune_limit_s: seconds that tuning may take; 0 where nothing is tuned.
    """

    parameters: int = 0
    float_bytes: int = 0
    quantized_bytes: int = 0
    tool_bytes: int = 0
    downloaded: bool = False
    exported: bool = False
    trained: bool = False
    calibration_tokens: int = 0
    method: Method | None = None
    prequantized: bool = False
    on_gpu: bool = False
    cache_bytes: int = 0
    parallel: int = 1
    stages: int = 1
    stage_share: float = 1.0
    outside_bytes: int = 0
    cache_share: float = 1.0
    tune_limit_s: float = 0.0

    @property
    def gpus(self) -> int:
        """GPUs that hold the model together."""
        return self.parallel * self.stages

    @property
    def gpu_weight_bytes(self) -> int:
        """The weights on the fullest GPU."""
        return self._on_a_gpu(self.quantized_bytes)

    @property
    def gpu_float_bytes(self) -> int:
        """The float model's weights on the fullest GPU, while it is measured."""
        return self._on_a_gpu(self.float_bytes)

    @property
    def gpu_cache_bytes(self) -> int:
        """The KV cache of one sequence on the fullest GPU."""
        return int(self.cache_bytes * self.stage_share * self.cache_share)

    def _on_a_gpu(self, whole: int) -> int:
        if self.stages == 1:
            return whole // self.parallel
        outside = min(self.outside_bytes, whole)
        return int(((whole - outside) * self.stage_share + outside) / self.parallel)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The resources that a build takes.

    Attributes:
        disk_bytes: disk at the highest point.
        memory_bytes: main memory at the highest point.
        gpu_bytes: memory of each GPU at the highest point.
        seconds: time in all.
        artifact_bytes: the artifact.
        attempt_bytes: disk that a method still holds when it failed its gates and another is tried.
    """

    disk_bytes: int
    memory_bytes: int
    gpu_bytes: int
    seconds: float
    artifact_bytes: int = 0
    attempt_bytes: int = 0


def estimate(size: BuildSize, *, cores: int) -> Estimate:
    """Estimate the resources that a build takes.

    Disk holds the float model where it is not here yet, the quantized one, the built one and the artifact. Memory holds
    the float model once while quantizing, and both models while validating.
    """
    fetched = size.float_bytes if size.downloaded or not size.prequantized else 0
    copies = 2 if size.prequantized else 3
    disk = fetched + copies * size.quantized_bytes + 3 * size.tool_bytes
    quantizing = 0 if size.prequantized else size.float_bytes
    validating = size.quantized_bytes + size.cache_bytes + (0 if size.prequantized else size.float_bytes)
    memory = PROCESS_BYTES + (size.float_bytes if size.on_gpu else max(quantizing, validating))
    served = size.gpu_weight_bytes if size.prequantized else max(size.gpu_weight_bytes, size.gpu_float_bytes)
    gpu = served + size.gpu_cache_bytes + PROCESS_BYTES if size.on_gpu else 0
    return Estimate(
        disk,
        memory,
        gpu,
        _seconds(size, cores),
        artifact_bytes=size.quantized_bytes + size.tool_bytes,
        attempt_bytes=(copies - 1) * size.quantized_bytes + size.tool_bytes,
    )


@dataclass(frozen=True, slots=True)
class ServingMemory:
    """The memory that the runtime has for conversations.

    Attributes:
        weight_bytes: the chat model, on all GPUs together.
        cache_bytes: what is left for the KV cache.
        conversation_bytes: the KV cache of one conversation at full length.
        gpu_weight_bytes: the weights on the fullest GPU.
    """

    weight_bytes: int
    cache_bytes: int
    conversation_bytes: int
    gpu_weight_bytes: int = 0

    @property
    def conversations(self) -> int:
        """Conversations at full length that fit at once; shared beginnings and shorter ones make it more."""
        return self.cache_bytes // self.conversation_bytes if self.conversation_bytes else 0


def serving_memory(size: BuildSize, *, gpu_bytes: int, beside_tool: bool) -> ServingMemory:
    """Estimate the memory for conversations, with the runtime's defaults.

    Args:
        size: of the build.
        gpu_bytes: memory of each GPU; not looked at where the lane runs on a CPU.
        beside_tool: whether a classifier shares the GPU.
    """
    if not size.on_gpu:
        return ServingMemory(size.quantized_bytes, int(defaults.CPU_KV_CACHE_GIB * 2**30), size.cache_bytes)
    fraction = defaults.GPU_CHAT_BESIDE_TOOL if beside_tool else defaults.GPU_ALONE
    room = max(0, int(gpu_bytes * fraction) - PROCESS_BYTES - size.gpu_weight_bytes)
    # The fullest GPU says how many fit; what that is on all of them together is what a conversation takes there.
    each = size.gpu_cache_bytes
    return ServingMemory(
        size.quantized_bytes,
        room * size.gpus,
        each * size.gpus,
        size.gpu_weight_bytes,
    )


def _seconds(size: BuildSize, cores: int) -> float:
    seconds = size.float_bytes / DOWNLOAD_RATE if size.downloaded else 0.0
    seconds += EXPORT_SECONDS * size.exported + TRAIN_SECONDS * size.trained
    seconds += 3 * size.quantized_bytes / COPY_RATE
    if size.quantized_bytes:
        seconds += VALIDATE_SECONDS
        if not size.on_gpu:
            seconds += 2 * size.parameters * HELD_OUT_TOKENS / (CORE_RATE * cores)
    if size.tune_limit_s:
        seconds += min(size.tune_limit_s, TRIALS * (TRIAL_SECONDS + size.quantized_bytes / COPY_RATE))
    if size.method and not size.prequantized:
        seconds += QUANTIZE_SECONDS
        each = GPU_SECONDS if size.on_gpu else size.method.seconds / cores
        seconds += size.parameters * size.calibration_tokens * each
    return seconds
