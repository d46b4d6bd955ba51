"""The worker's part for TensorRT-LLM's PyTorch backend: ModelOpt writes a Hugging Face folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pipeline.quantize import QuantizeJob, loading, samples_of, whole_weights, worker
from pipeline.quantize.trt_source import link_model

if TYPE_CHECKING:
    import torch

# ModelOpt's configurations, which TensorRT-LLM uses too.
CONFIGURATIONS = {"int4_awq": "INT4_AWQ_CFG", "fp8": "FP8_DEFAULT_CFG", "int8_sq": "INT8_SMOOTHQUANT_CFG"}

# How far INT8 smooths activations into the weights (SmoothQuant, arXiv 2211.10438, takes 0.5 to 0.8). ModelOpt's own 1
# moves everything there, and first choices agree less often (docs/quality.md).
SMOOTHING = {"method": "smoothquant", "alpha": 0.8}


def write(job: QuantizeJob, progress: worker.WorkerProgress) -> None:
    """Quantize the model of a job into `job.out`, as a Hugging Face folder."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import GenerationConfig

    progress.step(f"loading {job.model.name}")
    with loading.plain_folder(job.model, link_model) as folder:
        loading.forget_broken_modules()
        kind = loading.class_of(folder)
        dtype = getattr(torch, job.dtype)
        with whole_weights.required(job.model):
            model = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, trust_remote_code=False)
        model.generation_config = GenerationConfig()
        kept = loading.float_linears(model, job)
        loading.check(model, job, kept, apart=False)
        model.to(job.device).eval()
        progress.step(f"{job.method}: calibrating")
        config = configuration(mtq, job, kept)
        mtq.quantize(model, config, _forward_loop(job, progress))
        progress.step("writing the weights")
        with torch.inference_mode():
            export_hf_checkpoint(model, export_dir=job.out)


def configuration(
    mtq: Any,  # noqa: ANN401 - a module without types
    job: QuantizeJob,
    kept: Iterable[str] = (),
) -> dict[str, Any]:
    """Return ModelOpt's configuration of a method, with the job's groups, our smoothing, and what stays in float."""
    config: dict[str, Any] = copy.deepcopy(getattr(mtq, CONFIGURATIONS[job.method]))
    if job.method == "int4_awq" and job.group_size:
        _set_block_size(config, job.group_size)
    if job.method == "int8_sq":
        config["algorithm"] = SMOOTHING
    for name in kept:
        if isinstance(config["quant_cfg"], dict):
            config["quant_cfg"][f"{name}.*"] = {"enable": False}
        else:
            config["quant_cfg"].append({"quantizer_name": f"{name}.*", "enable": False})
    return config


def _set_block_size(node: Any, size: int) -> None:  # noqa: ANN401 - nested lists and dicts, different from release to release
    if isinstance(node, dict):
        if isinstance(blocks := node.get("block_sizes"), dict) and -1 in blocks:
            blocks[-1] = size
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            _set_block_size(child, size)


def _forward_loop(job: QuantizeJob, progress: worker.WorkerProgress) -> Callable[[torch.nn.Module], None]:
    import torch

    batches = [torch.tensor([tokens], device=job.device) for tokens in samples_of(job)]

    def loop(model: torch.nn.Module) -> None:
        with torch.inference_mode():
            for number, batch in enumerate(batches, 1):
                model(input_ids=batch)
                progress.advance(number / len(batches))

    return loop
