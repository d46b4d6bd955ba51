"""Quantizing for TensorRT-LLM with ModelOpt: int4_awq (W4A16), fp8 and int8_sq (W8A8, SmoothQuant).

For a compiled engine TensorRT-LLM's own `quantize_and_export` writes a checkpoint in its format; for its PyTorch
backend ModelOpt writes a Hugging Face folder. Either runs in a worker: TensorRT-LLM starts processes that import the
main module again, so that the worker does nothing unless it is that module itself.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.quantize import QuantizeJob, copy_companions, read_samples, worker
from pipeline.stages import StageError
from runtime.artifact import ArtifactError, Quantization
from runtime.engines.trt_folders import METHOD_OF_ALGORITHM, CheckpointFolder

if TYPE_CHECKING:
    import torch

    from pipeline.progress import Progress

SCHEMES = {"int4_awq": "W4A16", "fp8": "FP8", "int8_sq": "W8A8"}

# ModelOpt's configurations, which TensorRT-LLM uses too.
CONFIGURATIONS = {"int4_awq": "INT4_AWQ_CFG", "fp8": "FP8_DEFAULT_CFG", "int8_sq": "INT8_SMOOTHQUANT_CFG"}

# What ModelOpt writes into a Hugging Face folder about the quantization.
HF_QUANT_CONFIG = "hf_quant_config.json"

# The longest text that TensorRT-LLM's quantizer tokenizes unless told otherwise.
TOKENIZER_LENGTH = 2048


def quantize(job: QuantizeJob, *, python: Path | None, progress: Progress) -> Quantization:
    """Quantize in the quantizer environment.

    Args:
        job: what to do; `job.out` holds a TensorRT-LLM checkpoint afterwards, or a Hugging Face folder when `job.style`
            is `pytorch`.
        python: interpreter of the quantizer environment; none takes the running one.
        progress: told of each step.

    Returns:
        What was done, without the calibration, which the caller knows.

    Raises:
        StageError: the method is not one of this lane, the quantizer failed, or wrote something else than was asked.
    """
    if job.method not in SCHEMES:
        what = f"expected one of the methods {', '.join(SCHEMES)}, found {job.method!r}"
        raise StageError("quantize", what, next_step="choose one of them")
    if job.samples is None:
        next_step = "name a calibration data set in AWQ_CALIB_DATASET"
        raise StageError("quantize", f"{job.method} needs calibration samples, found none", next_step=next_step)
    job.out.mkdir(parents=True, exist_ok=True)
    worker.run("pipeline.quantize.trt", job, python=python, progress=progress)
    found = written_method(job.out, job.style)
    if found != job.method:
        raise StageError("quantize", f"expected a checkpoint in {job.method}, found {found}", job.out)
    return Quantization(
        method=job.method,
        scheme=SCHEMES[job.method],
        group_size=job.group_size if job.method == "int4_awq" else None,
        symmetric=True,
        kept_in_float=job.kept_in_float,
    )


def written_method(folder: Path, style: str) -> str:
    """How the model in a folder is quantized, by the quantizer's name.

    Raises:
        StageError: the folder is not what the style asks for.
    """
    try:
        if style == "engine":
            return CheckpointFolder.read(folder).weights.method
        stated = json.loads((folder / HF_QUANT_CONFIG).read_bytes())["quantization"]
        return METHOD_OF_ALGORITHM.get(str(stated["quant_algo"]), str(stated["quant_algo"]))
    except ArtifactError as error:
        raise StageError("quantize", str(error)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"expected quant_algo in {HF_QUANT_CONFIG}, found {type(error).__name__}: {error}"
        raise StageError("quantize", what, folder) from error


def export_arguments(job: QuantizeJob, dataset: Path, samples: int) -> dict[str, Any]:
    """The arguments of TensorRT-LLM's `quantize_and_export`.

    Args:
        job: what to do.
        dataset: folder that holds one split `train` with the column `text`.
        samples: texts in it.
    """
    return {
        "model_dir": str(job.model),
        "output_dir": str(job.out),
        "qformat": job.method,
        # The cache stays in the model's type: Qwen3 with an FP8 cache does not compile (TensorRT-LLM's issue 9298).
        "kv_cache_dtype": None,
        "dtype": job.dtype,
        "device": job.device,
        "device_map": "auto",
        "calib_dataset": str(dataset),
        "calib_size": samples,
        "calib_max_seq_length": job.sequence_length,
        "tokenizer_max_seq_length": max(TOKENIZER_LENGTH, job.sequence_length),
        "batch_size": 1,
        "awq_block_size": job.group_size or 128,
        "tp_size": job.tensor_parallel,
        "pp_size": 1,
        "cp_size": 1,
        "seed": job.seed,
        "quantize_lm_head": False,
    }


def main() -> None:
    """The worker: quantize the job whose file is the only argument."""
    job = QuantizeJob.read(Path(sys.argv[1]))
    report = worker.report()
    report.step("loading PyTorch")
    import torch

    random.seed(job.seed)
    torch.manual_seed(job.seed)
    if job.device == "cuda":
        # What follows hides the exception of a GPU that cannot be used ("Device 0 seems unavailable"); this one tells.
        torch.zeros(1, device="cuda:0")
    if job.style == "engine":
        _write_checkpoint(job, report)
    else:
        _write_folder(job, report)
    copy_companions(job.model, job.out)


def _write_checkpoint(job: QuantizeJob, report: worker.Report) -> None:
    """A TensorRT-LLM checkpoint."""
    from tensorrt_llm.quantization import quantize_and_export

    with tempfile.TemporaryDirectory(prefix="yap-calibration-") as folder:
        samples = _write_texts(job, Path(folder))
        report.step(f"{job.method}: quantizing through TensorRT-LLM, {samples} samples")
        quantize_and_export(**export_arguments(job, Path(folder), samples))


def _write_texts(job: QuantizeJob, folder: Path) -> int:
    """The calibration samples as texts, in the form that TensorRT-LLM reads; how many there are."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.model, local_files_only=True)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in _samples(job)]
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(texts)


def _write_folder(job: QuantizeJob, report: worker.Report) -> None:
    """A Hugging Face folder with ModelOpt's quantization."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    report.step(f"loading {job.model.name}")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype), local_files_only=True)
    model.to(job.device).eval()
    report.step(f"{job.method}: calibrating")
    mtq.quantize(model, configuration(mtq, job), _forward_loop(job, report))
    report.step("writing the weights")
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=job.out)


def configuration(mtq: Any, job: QuantizeJob) -> dict[str, Any]:  # noqa: ANN401 - a module without types
    """ModelOpt's configuration of a method, with the job's group size."""
    config: dict[str, Any] = copy.deepcopy(getattr(mtq, CONFIGURATIONS[job.method]))
    if job.method == "int4_awq" and job.group_size:
        _set_block_size(config, job.group_size)
    return config


def _set_block_size(node: Any, size: int) -> None:  # noqa: ANN401 - nested lists and dicts, different from release to release
    if isinstance(node, dict):
        if isinstance(blocks := node.get("block_sizes"), dict) and -1 in blocks:
            blocks[-1] = size
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            _set_block_size(child, size)


def _forward_loop(job: QuantizeJob, report: worker.Report) -> Callable[[torch.nn.Module], None]:
    import torch

    batches = [torch.tensor([tokens], device=job.device) for tokens in _samples(job)]

    def loop(model: torch.nn.Module) -> None:
        with torch.inference_mode():
            for number, batch in enumerate(batches, 1):
                model(input_ids=batch)
                report.advance(number / len(batches))

    return loop


def _samples(job: QuantizeJob) -> list[list[int]]:
    if job.samples is None:
        raise StageError("quantize", f"{job.method} needs calibration samples, found none")
    return read_samples(job.samples, job.sequence_length)


if __name__ == "__main__":
    main()
