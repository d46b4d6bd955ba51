"""ModelOpt for real, on the embedded chat model: what is exported, and how much quality it costs."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from pipeline import calibration, scores
from pipeline.embedded.texts import heldout_texts
from pipeline.gates import Figures, Thresholds, gates_of, shortfall
from pipeline.hardware import find_quantizer
from pipeline.plan import SEED, CalibrationPlan
from pipeline.progress import PlainProgress
from pipeline.quantize import QuantizeJob
from pipeline.quantize import trt as quantizing
from runtime.engines.trt_folders import METHOD_OF_ALGORITHM
from tests import dequantize

pytestmark = pytest.mark.engine

# One format by default: each takes one to four minutes on two cores. MODELOPT_FORMATS names others, or `all`.
DEFAULT = "fp8"
ASKED = os.environ.get("MODELOPT_FORMATS", DEFAULT)
FORMATS = list(quantizing.SCHEMES) if ASKED == "all" else ASKED.split(",")
SAMPLES, LENGTH = int(os.environ.get("MODELOPT_SAMPLES", "4")), 256
WINDOWS = int(os.environ.get("MODELOPT_WINDOWS", "6"))

# Perplexity ratio and agreement that only sound scales reach on a thousand tokens (the agreement is known to 0.02):
# a swapped nibble or a lost scale ends far beyond. They are wider than the lane's own bounds, which this model of 135
# million parameters does not always meet (docs/quality.md).
BOUNDS = {"int4_awq": Thresholds(1.30, 0.66), "fp8": Thresholds(1.06, 0.84), "int8_sq": Thresholds(1.06, 0.84)}

# SmolLM2's 576 columns are no multiple of 128.
GROUP_SIZE = 64


@pytest.mark.parametrize("method", FORMATS)
def test_an_export_says_what_it_is_and_meets_its_gates(method: str, chat_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    progress = PlainProgress()
    quantizer = find_quantizer(None, ("nvidia-modelopt",))
    assert quantizer is not None, "expected .venv-quantize with nvidia-modelopt; run `make setup`"
    texts = tmp_path / "texts"
    texts.mkdir()
    plan = CalibrationPlan("embedded", SAMPLES, LENGTH)
    calibration.calibrate(plan, chat_folder, texts, seed=SEED, parquet_python=quantizer.python, progress=progress)
    job = QuantizeJob(
        method=method,
        model=chat_folder,
        out=tmp_path / "out",
        group_size=GROUP_SIZE if method == "int4_awq" else None,
        symmetric=True,
        kept_in_float=(),
        samples=texts / calibration.SAMPLES_NAME,
        sequence_length=LENGTH,
        seed=SEED,
        device="cpu",
        dtype="bfloat16",
        style="pytorch",
    )
    done = quantizing.quantize(job, python=quantizer.python, progress=progress)
    assert (done.method, done.scheme, done.group_size) == (method, quantizing.SCHEMES[method], job.group_size)

    stated = json.loads((job.out / "hf_quant_config.json").read_bytes())
    algorithm = stated["quantization"]["quant_algo"]
    assert METHOD_OF_ALGORITHM[algorithm] == method
    assert stated["quantization"]["kv_cache_quant_algo"] is None
    assert "lm_head" in stated["quantization"]["exclude_modules"]
    assert stated["quantization"].get("group_size") == job.group_size
    config = json.loads((job.out / "config.json").read_bytes())
    assert config["quantization_config"]["quant_method"] == "modelopt"
    assert config["architectures"] == ["LlamaForCausalLM"]
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (job.out / name).read_bytes() == (chat_folder / name).read_bytes()

    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    windows = scores.windows_of(tokenizer, heldout_texts(), 513)[:WINDOWS]
    reference = asyncio.run(scores.score(dequantize.load_float(chat_folder), windows, progress))  # type: ignore[arg-type]
    engine = dequantize.load(job.out, chat_folder, algorithm)
    scored = asyncio.run(scores.score(engine, windows, progress))  # type: ignore[arg-type]
    figures = Figures(
        files=1,
        perplexity=scored.perplexity,
        perplexity_ratio=scores.perplexity_ratio(scored, reference),
        top1_agreement=scores.top1_agreement(scored, reference),
        held_out_tokens=len(scored.logprobs),
    )
    gates = gates_of(figures, BOUNDS[method])
    print(method, *(f"{gate.name}={gate.value:.4g}" for gate in gates))
    assert [shortfall(gate) for gate in gates if not gate.passed] == []
