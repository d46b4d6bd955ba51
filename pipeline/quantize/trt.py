"""Quantizing for TensorRT-LLM with ModelOpt: int4_awq (W4A16), fp8 and int8_sq (W8A8, SmoothQuant).

For a compiled engine TensorRT-LLM's own `quantize_and_export` writes a checkpoint in its format (`trt_checkpoint.py`);
for its PyTorch backend ModelOpt writes a Hugging Face folder (`trt_folder.py`). Either runs in a worker: TensorRT-LLM
starts processes that import the main module again, so that the worker does nothing unless it is that module itself.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.lanes import METHODS
from pipeline.lanes.table import TRT
from pipeline.quantize import (
    CHOOSE_DATA_SET,
    QuantizeJob,
    copy_auxiliary_files,
    read_back,
    trt_checkpoint,
    trt_folder,
    worker,
)
from pipeline.source import HF_QUANT_CONFIG
from pipeline.stages.gpu import require_cuda
from pipeline.stages.stage import StageError
from runtime.artifact import ArtifactError, Quantization
from runtime.artifact.generations import write_for_older
from runtime.defaults import TRT_GROUP_SIZES, first_set
from runtime.engines.trt.folders import METHOD_OF_ALGORITHM, CheckpointFolder
from runtime.host.arithmetic import multiply_in_float32

if TYPE_CHECKING:
    from pipeline.progress import Progress

FORMATS = TRT.methods


def quantize(job: QuantizeJob, *, python: Path | None, progress: Progress) -> Quantization:
    """Quantize a model for TensorRT-LLM, in the quantizer environment.

    Args:
        job: what to do; `job.out` holds a TensorRT-LLM checkpoint afterwards, or a Hugging Face folder when
            `job.backend` is `pytorch`.
        python: interpreter of the quantizer environment; none takes the running one.
        progress: told of each step.

    Returns:
        What was done, without the calibration, which the caller knows.

    Raises:
        StageError: the method is not one of this lane, the GPU cannot be used, the quantizer failed, or wrote something
            else than was asked.
    """
    if job.method not in FORMATS:
        what = f"expected one of the methods {', '.join(FORMATS)}, found {job.method!r}"
        raise StageError("quantize", what, next_step="choose one of them")
    if job.samples is None:
        raise StageError("quantize", f"{job.method} needs calibration samples, found none", next_step=CHOOSE_DATA_SET)
    if job.device == "cuda":
        require_cuda("quantize")
    job.out.mkdir(parents=True, exist_ok=True)
    worker.run_worker("pipeline.quantize.trt", job, python=python, progress=progress)
    found = written_method(job.out, job.backend)
    if found != job.method:
        raise StageError("quantize", f"expected a checkpoint in {job.method}, found {found}", job.out)
    written = read_back.read_modelopt(job.out, "config.json" if job.backend == "engine" else HF_QUANT_CONFIG)
    grouped = METHODS[job.method].grouped
    asked = replace(job, group_size=first_set(job.group_size, default=TRT_GROUP_SIZES[0]), symmetric=True)
    read_back.check(job, written, read_back.expected_format(asked, grouped=grouped))
    progress.step(f"read back: {written.format}; {written.share:.0%} of the weights are rounded")
    return Quantization(
        method=job.method,
        scheme=METHODS[job.method].scheme,
        group_size=written.format.group_size,
        symmetric=written.format.symmetric,
        kept_in_float=read_back.left_in_float(written),
    )


def written_method(folder: Path, backend: str) -> str:
    """Return the method by which the model in a folder is quantized, in the quantizer's name for it.

    Raises:
        StageError: the folder is not what the backend asks for.
    """
    try:
        if backend == "engine":
            return CheckpointFolder.read(folder).weights.method
        stated = json.loads((folder / HF_QUANT_CONFIG).read_bytes())["quantization"]
        return METHOD_OF_ALGORITHM.get(str(stated["quant_algo"]), str(stated["quant_algo"]))
    except ArtifactError as error:
        raise StageError("quantize", str(error)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"expected quant_algo in {HF_QUANT_CONFIG}, found {type(error).__name__}: {error}"
        raise StageError("quantize", what, folder) from error


def main() -> None:
    """Run the worker: quantize the job whose file is the only argument."""
    job = QuantizeJob.read(Path(sys.argv[1]))
    progress = worker.open_progress()
    progress.step("loading PyTorch")
    import torch

    random.seed(job.seed)
    torch.manual_seed(job.seed)
    if job.device == "cuda":
        # What follows hides PyTorch's exception ("Device 0 seems unavailable"); this one tells.
        torch.zeros(1, device="cuda:0")
    if job.device == "cpu":
        multiply_in_float32()
    write = trt_checkpoint.write if job.backend == "engine" else trt_folder.write
    with progress.refusals():
        write(job, progress)
    copy_auxiliary_files(job.model, job.out)
    write_for_older(job.out)


if __name__ == "__main__":
    main()
