"""The worker's part for compiled engines: TensorRT-LLM's own `quantize_and_export` writes a checkpoint.

What it does besides, in release 1.2, decides what it is given:

- It pads every calibration text to the longest one and takes the padding for text. So the samples are cut anew into
  texts of one length.
- It runs code that comes with a model, and takes "mpt" or "vila" anywhere in the path for a kind of model ("prompts"
  holds the one, "/srv/avila" the other). So it gets a folder of links under a plain name, without code.
- It smooths INT8 wholly into the weights, except for Gemma. So ModelOpt's configuration is changed, as it does there.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.quantize import QuantizeJob, samples_of, whole_weights, worker
from pipeline.quantize.trt_folder import CONFIGURATIONS, SMOOTHING
from pipeline.quantize.trt_source import link_model
from runtime.defaults import TRT_GROUP_SIZES, first_set
from runtime.text.tokenizer import load_fast_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The longest text that TensorRT-LLM's quantizer tokenizes unless told otherwise.
TOKENIZER_LENGTH = 2048

# Names within the folder that the quantizer works in.
MODEL, TEXTS = Path("model"), Path("texts")


def write(job: QuantizeJob, progress: worker.WorkerProgress) -> None:
    """Quantize the model of a job into `job.out`, as a TensorRT-LLM checkpoint."""
    import modelopt.torch.quantization as mtq
    from tensorrt_llm.quantization import quantize_and_export

    tokenizer = load_fast_tokenizer(job.model)
    texts, length = equal_length_texts(samples_of(job), tokenizer)
    getattr(mtq, CONFIGURATIONS["int8_sq"])["algorithm"] = SMOOTHING
    progress.step(f"{job.method}: quantizing through TensorRT-LLM, {len(texts)} texts of {length} tokens")
    out = job.out.resolve()
    with whole_weights.required(job.model), working_directory(job.model, texts):
        quantize_and_export(**arguments(job, out, len(texts), length))


def arguments(job: QuantizeJob, out: Path, samples: int, length: int) -> dict[str, Any]:
    """Return the arguments of `quantize_and_export`.

    Args:
        job: what to do.
        out: folder to write.
        samples: calibration texts.
        length: tokens of each.
    """
    return {
        "model_dir": str(MODEL),
        "output_dir": str(out),
        "qformat": job.method,
        # The cache stays in the model's type: Qwen3 with an FP8 cache does not compile (TensorRT-LLM's issue 9298).
        "kv_cache_dtype": None,
        "dtype": job.dtype,
        "device": job.device,
        "device_map": "auto",
        "calib_dataset": str(TEXTS),
        "calib_size": samples,
        "calib_max_seq_length": length,
        "tokenizer_max_seq_length": max(TOKENIZER_LENGTH, length),
        "batch_size": 1,
        "awq_block_size": first_set(job.group_size, default=TRT_GROUP_SIZES[0]),
        "tp_size": job.tensor_parallel,
        "pp_size": 1,
        "cp_size": 1,
        "seed": job.seed,
        "quantize_lm_head": False,
    }


def equal_length_texts(samples: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], int]:
    """Cut the samples anew into as many texts, all of the same length in tokens.

    Returns:
        The texts, and the tokens to take of each, which every one of them has.
    """
    stream = [token for sample in samples for token in sample]
    length = len(stream) // len(samples)
    # What the tokenizer puts before every text, such as a begin token, must not be there twice.
    prefix: list[int] = tokenizer("")["input_ids"]
    texts = []
    for begin in range(0, length * len(samples), length):
        piece = stream[begin : begin + length]
        piece = piece[len(prefix) :] if prefix and piece[: len(prefix)] == prefix else piece
        texts.append(str(tokenizer.decode(piece, skip_special_tokens=False)))
    return texts, min(length, *(len(tokenizer(text)["input_ids"]) for text in texts))


@contextlib.contextmanager
def working_directory(model: Path, texts: Sequence[str]) -> Iterator[Path]:
    """Make a folder with the model and the texts under plain names, and work in it meanwhile."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="yap-calibration-") as folder:
        directory = Path(folder)
        (directory / TEXTS).mkdir()
        link_model(model, directory / MODEL)
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        (directory / TEXTS / "train.jsonl").write_text("".join(lines), encoding="utf-8")
        os.chdir(directory)
        try:
            yield directory
        finally:
            os.chdir(before)
