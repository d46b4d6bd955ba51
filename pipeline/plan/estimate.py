"""What a build will take: disk, memory and time, from the model's size. Estimates, so that surprises are small."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.lanes import Method

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
# A good link and a local disk.
DOWNLOAD_RATE, COPY_RATE = 50e6, 500e6


@dataclass(frozen=True, slots=True)
class Work:
    """The size of a build. Bytes, parameters and tokens."""

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
    device: str = "cpu"
    cache_bytes: int = 0
    parallel: int = 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of disk, of main memory and of each GPU's memory at the highest point, and seconds in all."""

    disk_bytes: int
    memory_bytes: int
    gpu_bytes: int
    seconds: float


def estimate(work: Work, *, cores: int) -> Estimate:
    """Estimate a build.

    Disk holds the float model where it is not here yet, the quantized one, the built one and the artifact. Memory holds
    the float model once while quantizing, and both models while validating.
    """
    fetched = work.float_bytes if work.downloaded or not work.prequantized else 0
    copies = 2 if work.prequantized else 3
    disk = fetched + copies * work.quantized_bytes + 3 * work.tool_bytes
    on_gpu = work.device == "cuda"
    quantizing = 0 if work.prequantized else work.float_bytes
    validating = work.quantized_bytes + work.cache_bytes + (0 if work.prequantized else work.float_bytes)
    memory = PROCESS_BYTES + (work.float_bytes if on_gpu else max(quantizing, validating))
    gpu = (work.quantized_bytes + work.cache_bytes) // work.parallel + PROCESS_BYTES if on_gpu else 0
    return Estimate(disk, memory, gpu, _seconds(work, cores))


def _seconds(work: Work, cores: int) -> float:
    seconds = work.float_bytes / DOWNLOAD_RATE if work.downloaded else 0.0
    seconds += EXPORT_SECONDS * work.exported + TRAIN_SECONDS * work.trained
    seconds += 3 * work.quantized_bytes / COPY_RATE
    if work.quantized_bytes:
        seconds += VALIDATE_SECONDS
        if work.device == "cpu":
            seconds += 2 * work.parameters * HELD_OUT_TOKENS / (CORE_RATE * cores)
    if work.method and not work.prequantized:
        seconds += QUANTIZE_SECONDS
        each = GPU_SECONDS if work.device == "cuda" else work.method.seconds / cores
        seconds += work.parameters * work.calibration_tokens * each
    return seconds
