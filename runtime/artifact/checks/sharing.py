"""How many GPUs share a model, and which can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.artifact import ArtifactError, Limits
from runtime.defaults import first_set
from runtime.host.machine import Gpu

# Of one kind of GPU, no two that work have less in common than this part of their memory: a driver may take some.
ALIKE = 0.95


@dataclass(frozen=True, slots=True)
class Sharing:
    """How many GPUs shall share the model, where the operator says so; none leaves the artifact's number.

    Attributes:
        tensor: GPUs that share every layer.
        pipeline: stages of layers.
    """

    tensor: int | None = None
    pipeline: int | None = None

    def of(self, limits: Limits) -> Limits:
        """An artifact's limits with these numbers in place of its own."""
        tensor = first_set(self.tensor, default=limits.tensor_parallel_size)
        stages = first_set(self.pipeline, default=limits.pipeline_parallel_size)
        return limits.model_copy(update={"tensor_parallel_size": tensor, "pipeline_parallel_size": stages})


AS_BUILT = Sharing()


def check_gpus(limits: Limits, gpus: tuple[Gpu, ...]) -> None:
    """Refuse fewer GPUs than share the model, and those that are not alike."""
    if len(gpus) < limits.gpus:
        raise ArtifactError(
            f"expected {_shared_by(limits)}, found {len(gpus)}; give the server as many of this host's, or set "
            "TENSOR_PARALLEL_SIZE lower"
        )
    if odd := unlike(gpus[: limits.gpus]):
        raise ArtifactError(
            f"expected {_shared_by(limits)} that are alike, found {odd}; choose others with CUDA_VISIBLE_DEVICES"
        )


def unlike(gpus: Sequence[Gpu]) -> str | None:
    """What GPUs are that cannot share a model, because one is of another kind than the first; none where all are alike.

    The others would wait for the slowest, the KV cache would be the smallest's, and kernels are compiled for one kind.
    """
    for number, gpu in enumerate(gpus):
        first = gpus[0]
        same = gpu.memory_bytes >= ALIKE * first.memory_bytes and first.memory_bytes >= ALIKE * gpu.memory_bytes
        if (gpu.name, gpu.sm) != (first.name, first.sm) or not same:
            return f"{_described(first)} and, as GPU {number}, {_described(gpu)}"
    return None


def _shared_by(limits: Limits) -> str:
    stages = f" × PIPELINE_PARALLEL_SIZE {limits.pipeline_parallel_size}" if limits.pipeline_parallel_size > 1 else ""
    return f"{limits.gpus} GPUs (TENSOR_PARALLEL_SIZE {limits.tensor_parallel_size}{stages})"


def _described(gpu: Gpu) -> str:
    return f"{gpu.name} (sm{gpu.sm}, {gpu.memory_bytes / 2**30:.0f} GiB)"
