"""Quantizing for the vLLM lanes with llm-compressor: AWQ and GPTQ (W4A16), FP8 (dynamic) and INT8 (W8A8).

`quantize` is the pipeline's side. Run as a module, this file is the worker, in the quantizer environment, which has
llm-compressor but neither an engine nor the project's other dependencies.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pipeline.lanes import METHODS
from pipeline.lanes.table import VLLM
from pipeline.quantize import (
    CHOOSE_DATA_SET,
    QuantizeJob,
    copy_auxiliary_files,
    loading,
    read_back,
    samples_of,
    smoothing,
    whole_weights,
    worker,
)
from pipeline.stages.stage import StageError
from runtime.artifact import Quantization
from runtime.host.arithmetic import multiply_in_float32

if TYPE_CHECKING:
    from llmcompressor.modifiers import Modifier
    from torch.utils.data import DataLoader

    from pipeline.progress import Progress

# What llm-compressor does here; the runtime's own `none` is no work of a quantizer.
FORMATS = tuple(method for method in VLLM.methods if method != "none")

# Methods that move scales between layers beforehand.
SMOOTHED = frozenset({"awq", "int8"})

# How far activations are smoothed into the weights. SmoothQuant (arXiv 2211.10438) takes 0.5 to 0.8.
SMOOTHING_STRENGTH = 0.8

# Points of AWQ's search for a layer's scales. llm-compressor's own 20 gain little (docs/quality.md) and take long on a
# CPU; on a GPU nobody notices.
GRID_POINTS = {"cpu": 8, "cuda": 20}


def quantize(job: QuantizeJob, *, python: Path | None, progress: Progress) -> Quantization:
    """Quantize a model for the vLLM lanes, in the quantizer environment.

    Args:
        job: what to do; `job.out` holds a Hugging Face folder afterwards.
        python: interpreter of the quantizer environment; none takes the running one.
        progress: told of each step.

    Returns:
        What was done, without the calibration, which the caller knows.

    Raises:
        StageError: the method is not one of this lane, or the quantizer failed.
    """
    if job.method not in FORMATS:
        what = f"expected one of the methods {', '.join(FORMATS)}, found {job.method!r}"
        raise StageError("quantize", what, next_step="choose one of them")
    if job.samples is None and job.method in {"awq", "gptq"}:
        raise StageError("quantize", f"{job.method} needs calibration samples, found none", next_step=CHOOSE_DATA_SET)
    job.out.mkdir(parents=True, exist_ok=True)
    worker.run_worker("pipeline.quantize.vllm", job, python=python, progress=progress)
    if not (job.out / "config.json").is_file():
        raise StageError("quantize", f"expected a config.json from {job.method}, found none", job.out)
    grouped = METHODS[job.method].grouped
    written = read_back.read_compressed(job.out)
    read_back.check(job, written, read_back.expected_format(job, grouped=grouped))
    progress.step(f"read back: {written.format}; {written.share:.0%} of the weights are rounded")
    return Quantization(
        method=job.method,
        scheme=METHODS[job.method].scheme,
        group_size=written.format.group_size,
        symmetric=written.format.symmetric,
        kept_in_float=read_back.left_in_float(written),
    )


def main() -> None:
    """Run the worker: quantize the job whose file is the only argument."""
    job = QuantizeJob.read(Path(sys.argv[1]))
    progress = worker.open_progress()
    with progress.refusals():
        _write(job, progress)


def _write(job: QuantizeJob, progress: worker.WorkerProgress) -> None:
    progress.step("loading llm-compressor")
    import torch
    from llmcompressor import oneshot
    from llmcompressor.utils import load_context
    from transformers import GenerationConfig

    random.seed(job.seed)
    torch.manual_seed(job.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if job.device == "cpu":
        multiply_in_float32()

    progress.step(f"loading {job.model.name}")
    with loading.plain_folder(job.model) as folder:
        loading.forget_broken_modules()
        kind = loading.class_of(folder)
        with whole_weights.required(job.model), load_context(kind):
            model = kind.from_pretrained(folder, dtype="auto", local_files_only=True, trust_remote_code=False)
        model.generation_config = GenerationConfig()
        kept = loading.float_linears(model, job)
        loading.check(model, job, kept)
        places: tuple[smoothing.Smoothing, ...] = ()
        if job.method in SMOOTHED and job.samples:
            progress.step("looking for places where scales can move")
            places = smoothing.find(model, samples_of(job), loading.linears(model).keys() - kept.keys())
        recipe = _recipe(job, kept, places)
        calibrated = [modifier.requires_calibration_data for modifier in recipe]
        layers = model.config.get_text_config().num_hidden_layers + 1  # the last one holds the head
        _adapt(sum(layers if flag else 1 for flag in calibrated), progress)
        # A processor that is no path is not loaded: the samples are token ids already.
        processor = SimpleNamespace()
        calibration = {"dataset": _loader(job), "max_seq_length": job.sequence_length} if any(calibrated) else {}
        progress.step(f"{job.method}: quantizing {layers - 1} layers")
        oneshot(model=model, processor=processor, recipe=recipe, **calibration)

        progress.step("writing the weights")
        model.save_pretrained(job.out, save_compressed=True)
    copy_auxiliary_files(job.model, job.out)


def _recipe(job: QuantizeJob, kept: Iterable[str], places: Sequence[smoothing.Smoothing]) -> list[Modifier]:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    ignore = [*kept]
    if job.method == "fp8":
        return [QuantizationModifier(targets=["Linear"], scheme="FP8_DYNAMIC", ignore=ignore)]
    if job.method == "int8":
        plain = QuantizationModifier(targets=["Linear"], scheme="W8A8", ignore=ignore)
        norms = [([*place.balance], place.smooth) for place in places if place.suits_smoothquant]
        return [SmoothQuantModifier(smoothing_strength=SMOOTHING_STRENGTH, mappings=norms), plain] if norms else [plain]
    weights = QuantizationArgs(
        num_bits=4,
        type="int",
        symmetric=job.symmetric,
        strategy="group" if job.group_size else "channel",
        group_size=job.group_size,
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    if job.method == "gptq":
        return [GPTQModifier(config_groups=groups, ignore=ignore)]
    if not places:
        what = "expected layers between which AWQ can move scales, found none"
        raise StageError("quantize", what, job.model, "use gptq, or an 8-bit method")
    # AWQ only moves scales between layers; the second modifier rounds.
    mappings = [AWQMapping(place.smooth, [*place.balance]) for place in places]
    search = AWQModifier(n_grid=GRID_POINTS[job.device], mappings=mappings)
    return [search, QuantizationModifier(config_groups=groups, ignore=ignore)]


def _loader(job: QuantizeJob) -> DataLoader[dict[str, object]]:
    """Load samples one by one, in the order of the file: without padding, the same input every time."""
    import torch
    from torch.utils.data import DataLoader

    tensors = [torch.tensor([tokens]) for tokens in samples_of(job)]
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tensors]
    return DataLoader(batches, batch_size=None, shuffle=False)


def _adapt(steps: int, progress: worker.WorkerProgress) -> None:
    """Report each finished layer, and let AWQ run without an accelerator."""
    import torch
    from llmcompressor.core import LifecycleCallbacks
    from llmcompressor.modifiers.transform.awq import base as awq
    from llmcompressor.modifiers.transform.smoothquant import base as smoothquant
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        # There is nothing to pin memory for, and PyTorch refuses to.
        IntermediatesCache.pin_memory = lambda *_, **__: None

    # The places are exact names.
    awq.match_modules_set = smoothquant.match_modules_set = smoothing.match_by_name

    finish_layer, done = LifecycleCallbacks.sequential_epoch_end, 0

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal done
        result = finish_layer(*args, **kwargs)
        done += 1
        progress.advance(done / steps)
        return result

    LifecycleCallbacks.sequential_epoch_end = counted


if __name__ == "__main__":
    main()
