"""The GPU that a stage needs."""

from __future__ import annotations

from pipeline.stages.stage import StageError
from runtime.host import cuda, machine


def require_cuda(stage: str) -> None:
    """Check that CUDA can use the GPU that the driver lists, before a library hides why it cannot.

    Raises:
        StageError: it cannot, with the diagnosis.
    """
    try:
        cuda.check_cuda(machine.describe())
    except cuda.CudaError as error:
        raise StageError(stage, str(error)) from error
