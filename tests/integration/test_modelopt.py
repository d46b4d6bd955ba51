"""ModelOpt for real, on the embedded chat model: the pipeline's own stages quantize it, and its own gate judges it.

Only what needs a GPU is another: transformers stands for TensorRT-LLM's engine (`tests/harness/models/dequantize.py`),
and the plan is made for an H200 and carried out on the CPU.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from pipeline import lanes
from pipeline.embedded.texts import heldout_texts
from pipeline.lanes import gate_specs
from pipeline.lanes.gates import failures
from pipeline.plan import SEED, BuildRequest
from pipeline.plan.chat.grouping import HEADS, MOE_GATES
from pipeline.plan.hardware import find_quantizer
from pipeline.plan.prepare import Prepared, prepare
from pipeline.progress import PlainProgress
from pipeline.quantize import QuantizeJob, trt
from pipeline.run import Run
from pipeline.steps.stage_runner import StageRunner
from pipeline.validate.chat_figures import measure_reference
from pipeline.validate.validation import validate
from runtime import engines
from runtime.engines import EngineOptions
from runtime.engines.trt.folders import METHOD_OF_ALGORITHM
from runtime.host import machine
from tests.harness.models import dequantize, tiny
from tests.harness.trt.lane import H200

pytestmark = pytest.mark.engine

# Calibration samples of 256 tokens at most: enough for what is expected below, and quick on two cores. MODELOPT_SAMPLES
# takes another number for every format, MODELOPT_FORMATS other formats: one that passes and one that is refused are
# here, `make test-formats` takes all.
SAMPLES = {"int4_awq": "2", "fp8": "16", "int8_sq": "16"}
FORMATS = os.environ.get("MODELOPT_FORMATS", "int4_awq,fp8").split(",")
LENGTH = "256"

# Groups of 64 without a zero point are too coarse for a model this small (docs/quality.md): by the bounds of every plan
# its gate refuses it. Sound scales still reach this agreement, rounding without a search 0.56.
REFUSED = {"int4_awq": 0.62}

# Every third of the gate's texts: some 1,300 tokens, which know the agreement to 0.01. MODELOPT_TEXTS=all takes all.
TEXTS = heldout_texts() if os.environ.get("MODELOPT_TEXTS") == "all" else heldout_texts()[::3]

# The speed of transformers on a CPU says nothing.
NO_HURRY = {gate_specs.TTFT: 1e9, gate_specs.ITL: 1e9, gate_specs.THROUGHPUT: 0.0}


@pytest.fixture(scope="module")
def prepared(stages: StageRunner, tmp_path_factory: pytest.TempPathFactory):
    """A plan of the TensorRT-LLM lane for each format, to be carried out on this CPU."""
    with pytest.MonkeyPatch.context() as patch:
        # int8_sq runs as a compiled engine alone; ModelOpt's recipe and its export are the same.
        every = replace(lanes.TRT_PYTORCH, methods=trt.FORMATS)
        patch.setattr("pipeline.lanes.table.TRT_PYTORCH", every)
        patch.setattr(machine, "describe", lambda: H200)
        patch.setattr("pipeline.validate.chat_figures.heldout_texts", lambda: TEXTS)
        patch.setattr(engines, "for_model", lambda _, folder, __: dequantize.engine_of_float(folder))
        patch.setattr(engines, "create", lambda folder, *_: dequantize.engine_of(folder))

        def make(method: str) -> Prepared:
            environment = os.environ | {
                "AWQ_CACHE_DIR": str(stages.cache),
                "TRT_BACKEND": "pytorch",
                "TRT_DTYPE": "bfloat16",
                "TRT_MAX_BATCH_SIZE": "1",
                "TRT_CALIB_SIZE": os.environ.get("MODELOPT_SAMPLES", SAMPLES[method]),
                "TRT_CALIB_SEQLEN": LENGTH,
                "CHAT_MAX_LEN": "1024",  # no prefix cache here: what a long prompt takes is measured elsewhere
            }
            out = tmp_path_factory.mktemp("modelopt") / method
            request = BuildRequest(chat="embedded", lanes=("trt",), method=method, out=out, thresholds=NO_HURRY)
            work = prepare(request, None, environment)
            return replace(work, plan=replace(work.plan, device="cpu"))

        yield make


@pytest.fixture(scope="module")
def reference(prepared: Callable[[str], Prepared], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """The float model's scores."""

    @cache
    def measure(model: Path) -> Path:
        out = tmp_path_factory.mktemp("reference") / "scores.json"
        measure_reference(
            model,
            out,
            engine=lanes.TRT_PYTORCH.engine,
            options=EngineOptions(max_model_len=513),
            progress=PlainProgress(),
        )
        return out

    return measure


@pytest.mark.parametrize("method", FORMATS)
def test_an_export_says_what_it_is_and_the_gate_judges_it(
    method: str, prepared: Callable[[str], Prepared], reference: Callable[[Path], Path]
) -> None:
    work = prepared(method)
    run = Run(work, PlainProgress())
    folder, metadata = run.build()
    source = run.runner.chat_source(work.plan.chat.source).folder

    stated = json.loads((folder / "hf_quant_config.json").read_bytes())["quantization"]
    assert METHOD_OF_ALGORITHM[stated["quant_algo"]] == method
    assert stated["kv_cache_quant_algo"] is None
    assert "lm_head" in stated["exclude_modules"]
    # SmolLM2's 576 columns are no multiple of 128.
    assert stated.get("group_size") == (64 if method == "int4_awq" else None)
    config = json.loads((folder / "config.json").read_bytes())
    assert config["quantization_config"]["quant_method"] == "modelopt"
    assert config["architectures"] == ["LlamaForCausalLM"]
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert metadata.chat is not None
    quantization = metadata.chat.quantization
    assert (quantization.method, quantization.scheme) == (method, lanes.METHODS[method].scheme)
    assert quantization.group_size == stated.get("group_size")
    assert quantization.calibration is not None
    assert quantization.calibration.samples == work.plan.chat.calibration.samples

    validation = validate(
        folder, metadata, reference=reference(source), thresholds=work.plan.thresholds, progress=PlainProgress()
    )
    print(
        method,
        *(f"{gate.name}={gate.value:.4g}{gate.relation or ''}{gate.threshold or ''}" for gate in validation.gates),
    )
    gates = {gate.name: gate for gate in validation.gates}
    if method in REFUSED:
        assert not gates["top1_agreement"].passed
        assert gates["top1_agreement"].value >= REFUSED[method]
    else:
        assert failures(validation) == []


def test_the_gates_of_a_mixture_of_experts_stay_in_float(tmp_path: Path) -> None:
    from safetensors import safe_open

    quantizer = find_quantizer(None, ("nvidia-modelopt",))
    assert quantizer is not None, "expected .venv-quantize with nvidia-modelopt; run `make setup`"
    job = QuantizeJob(
        method="fp8",
        model=tiny.mixtral(tmp_path / "model"),
        out=tmp_path / "out",
        group_size=None,
        symmetric=True,
        kept_in_float=HEADS + MOE_GATES,
        samples=tiny.samples(tmp_path / "samples.jsonl"),
        sequence_length=32,
        seed=SEED,
        device="cpu",
        dtype="bfloat16",
        backend="pytorch",
    )
    trt.quantize(job, python=quantizer.python, progress=PlainProgress())
    with safe_open(job.out / "model.safetensors", "pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
    kept = [re.compile(pattern.removeprefix("re:")) for pattern in job.kept_in_float]
    modules = {name.removesuffix(".weight"): dtype for name, dtype in types.items() if name.endswith("proj.weight")}
    assert set(modules.values()) == {"F8_E4M3"}
    gates = {name: dtype for name, dtype in types.items() if any(p.match(name.removesuffix(".weight")) for p in kept)}
    assert len(gates) >= 2
    assert set(gates.values()) == {"BF16"}
    experts = [dtype for name, dtype in types.items() if ".experts." in name and name.endswith(".weight")]
    assert len(experts) == 2 * 4 * 3
    assert set(experts) == {"F8_E4M3"}
