"""What a request becomes in the TensorRT-LLM lane: a plan, or every problem at once."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import settings
from pipeline.lanes import gate_specs as gates
from pipeline.plan import BuildPlan, BuildRequest, disk_facts, planner
from pipeline.plan.hardware import Hardware, Quantizer
from pipeline.problem import WrongRequestError
from pipeline.publish.reports.plan_report import show_plan, steps
from pipeline.source import HF_QUANT_CONFIG, SourceFacts, read_facts
from runtime.host.machine import Gpu, Machine
from tests.harness.builds.plans import GIB, LLAMA_8B
from tests.harness.source.no_reading import no_reading
from tests.harness.trt.lane import H200, LABEL

DATA = Path(__file__).parents[3] / "data/trt"
ENGINE, CHECKPOINT = DATA / "engines/llama-int4-awq", DATA / "checkpoints/llama-int4-awq"
QUANTIZER = Quantizer(Path("/usr/bin/python3"), {"nvidia-modelopt": "0.37.0", "tensorrt-llm": "1.2.1"})

QWEN3 = LLAMA_8B | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
QWEN3_MOE = QWEN3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}


def on(sm: int, *, gpus: int = 1, **changes: Any) -> Hardware:
    devices = tuple(Gpu(f"GPU with sm{sm}", sm, 140 * GIB, 140 * GIB) for _ in range(gpus))
    here = replace(H200, gpus=devices, **changes)
    return Hardware(here, free_disk=2000 * GIB, cores=8, quantizer=QUANTIZER)


A100, ADA, HOPPER, B200, DESKTOP = on(80), on(89), on(90), on(100), on(120)


# A TensorRT-LLM checkpoint's config.json, and that of a Hugging Face folder by ModelOpt.
CHECKPOINT_CONFIG = {name: value for name, value in LLAMA_8B.items() if name != "architectures"} | {
    "architecture": "LlamaForCausalLM",
    "dtype": "float16",
    "quantization": {"quant_algo": "FP8"},
}
MODELOPT = LLAMA_8B | {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}


def holding(config: Mapping[str, Any], checkpoint: Mapping[str, Any], name: str = "org/model") -> SourceFacts:
    """A repository with a TensorRT-LLM checkpoint."""
    return replace(model(config, name), checkpoint=checkpoint)


def model(
    config: Mapping[str, Any] = LLAMA_8B, name: str = "org/model", size: int = 16 * GIB, *others: str
) -> SourceFacts:
    sizes = {"model.safetensors": size, "config.json": 1000, "tokenizer.json": 1000} | dict.fromkeys(others, 100)
    return SourceFacts(name, "hub", name, revision="c0ffee", config=config, sizes=sizes, chat_template=True)


@dataclass(frozen=True)
class Row:
    """A request, and what the plan then says (`expect`) or names as wrong (`wrong`: a text for each problem)."""

    name: str
    method: str | None = None
    on: Hardware = HOPPER
    chat: SourceFacts = field(default_factory=model)
    env: dict[str, str] = field(default_factory=dict)
    expect: Callable[[BuildPlan], bool] | None = None
    wrong: tuple[str, ...] = ()


def make(row: Row) -> BuildPlan:
    loaded = settings.load({"TRT_MAX_BATCH_SIZE": "16"} | row.env)
    request = BuildRequest(chat=row.chat.ref, lanes=("trt",), method=row.method)
    found = disk_facts.read(request, loaded.settings)
    with no_reading():
        return planner.make_plan(request, loaded.settings, row.chat, None, row.on, loaded.problems, found)


def method_is(method: str, **more: Any) -> Callable[[BuildPlan], bool]:
    def check(plan: BuildPlan) -> bool:
        assert plan.chat is not None
        assert plan.chat.method == method
        for name, value in more.items():
            assert getattr(plan.chat, name) == value, name
        return True

    return check


def samples(count: int, length: int) -> Callable[[BuildPlan], bool]:
    return lambda p: (p.chat.calibration.samples, p.chat.calibration.sequence_length) == (count, length)


def limits(*values: int) -> Callable[[BuildPlan], bool]:
    return lambda p: tuple(p.chat.limits.model_dump().values()) == values


PYTORCH = {"TRT_BACKEND": "pytorch"}
PLANS = [
    Row("the default is 4 bits by AWQ", expect=method_is("int4_awq", scheme="W4A16", group_size=128, symmetric=True)),
    Row("awq is int4_awq", "awq", expect=method_is("int4_awq")),
    Row("8bit on Hopper", "8bit", expect=method_is("fp8", scheme="FP8", group_size=None)),
    Row("8bit on Ada", "8bit", ADA, expect=method_is("fp8")),
    Row("8bit on Blackwell", "8bit", B200, expect=method_is("fp8")),
    Row("8bit on Ampere", "8bit", A100, expect=method_is("int8_sq", scheme="W8A8")),
    Row("QUANTIZATION names a format", env={"QUANTIZATION": "int8_sq"}, expect=method_is("int8_sq")),
    Row("fp8 looks at text too", "fp8", expect=samples(64, 5675)),
    Row("AWQ takes 32 samples at most", expect=samples(32, 5675)),
    Row("AWQ by ModelOpt itself takes them all", env=PYTORCH, expect=samples(64, 5675)),
    Row("fewer samples", env={"TRT_CALIB_SIZE": "8", "TRT_CALIB_SEQLEN": "512"}, expect=samples(8, 512)),
    Row("limits by default", expect=limits(16, 5525, 150, 5675, 1)),
    Row(
        "limits as asked",
        env={"TRT_MAX_BATCH_SIZE": "3", "TRT_MAX_INPUT_LEN": "1000", "TRT_MAX_OUTPUT_LEN": "50"},
        expect=limits(3, 1000, 50, 1050, 1),
    ),
    Row(
        "the runtime's own variables are the defaults",
        env={"CHAT_MAX_LEN": "2000", "CHAT_MAX_OUT": "77"},
        expect=limits(16, 2000, 77, 2077, 1),
    ),
    Row("the label of this GPU", expect=lambda p: p.chat.trt.label == LABEL),
    Row(
        "the label of two that share the model",
        on=on(90, gpus=2),
        env={"TENSOR_PARALLEL_SIZE": "2"},
        expect=lambda p: p.chat.trt.label == f"{LABEL}_tp2",
    ),
    Row("float16 unless told otherwise", expect=lambda p: p.chat.dtype == "float16"),
    Row("bfloat16", env={"TRT_DTYPE": "bfloat16"}, expect=lambda p: p.chat.dtype == "bfloat16"),
    Row("a smaller group", env={"TRT_AWQ_BLOCK_SIZE": "64"}, expect=method_is("int4_awq", group_size=64)),
    Row(
        "SmolLM2 takes groups of 64",
        chat=read_facts("embedded", "CHAT_MODEL"),
        expect=method_is("int4_awq", group_size=64),
    ),
    Row(
        "tensor parallelism halves the widths",
        on=on(90, gpus=2),
        chat=model(LLAMA_8B | {"intermediate_size": 128 * 113}),
        env={"TENSOR_PARALLEL_SIZE": "2"},
        expect=method_is("int4_awq", group_size=64),
    ),
    Row("Qwen3 by FP8", "8bit", chat=model(QWEN3), expect=method_is("fp8")),
    Row("Qwen3 by AWQ on PyTorch", chat=model(QWEN3), env=PYTORCH, expect=lambda p: p.engine == "trt-pytorch"),
    Row(
        "PyTorch needs no batch size", env=PYTORCH | {"TRT_MAX_BATCH_SIZE": ""}, expect=limits(256, 5525, 150, 5675, 1)
    ),
    Row("PyTorch compiles nothing", env=PYTORCH, expect=lambda p: p.chat.trt.label is None),
    Row(
        "GPT-OSS on PyTorch",
        "8bit",
        chat=model(LLAMA_8B | {"model_type": "gpt_oss"}),
        env=PYTORCH,
        expect=method_is("fp8"),
    ),
    Row(
        "a mixture of experts by its config",
        "8bit",
        chat=model(QWEN3_MOE),
        expect=lambda p: p.chat.moe.experts == 128 and p.chat.method == "fp8",
    ),
    Row("a mixture of experts by its name", chat=model(name="org/Foo-30B-A3B"), expect=lambda p: bool(p.chat.moe)),
    Row(
        "a checkpoint that exists",
        env={"TRT_CHECKPOINT_DIR": str(CHECKPOINT)},
        on=replace(HOPPER, quantizer=None),
        expect=method_is("int4_awq", group_size=64, calibration=None, kept_in_float=()),
    ),
    Row(
        "an engine that exists needs no batch size",
        env={"TRTLLM_ENGINE_DIR": str(ENGINE), "TRT_MAX_BATCH_SIZE": ""},
        on=replace(HOPPER, quantizer=None),
        expect=limits(16, 1000, 150, 1150, 1),
    ),
    Row(
        "TRTLLM_REPO_DIR is obsolete",
        env={"TRTLLM_REPO_DIR": "/somewhere"},
        expect=lambda p: any(d.name == "TRTLLM_REPO_DIR" and "obsolete" in d.reason for d in p.decisions),
    ),
    Row(
        "a small model's bound of FP8 with static scales",
        "8bit",
        chat=read_facts("embedded", "CHAT_MODEL"),
        expect=lambda p: p.thresholds[gates.TOP1_AGREEMENT] == 0.83 and gates.PERPLEXITY_RATIO not in p.thresholds,
    ),
    Row(
        "that of INT8 with static scales",
        "int8_sq",
        chat=read_facts("embedded", "CHAT_MODEL"),
        expect=lambda p: p.thresholds[gates.TOP1_AGREEMENT] == 0.83,
    ),
    Row(
        "that of 4 bits",
        chat=read_facts("embedded", "CHAT_MODEL"),
        expect=lambda p: p.thresholds[gates.TOP1_AGREEMENT] == 0.76,
    ),
    Row("a large model's bound", "8bit", expect=lambda p: p.thresholds[gates.TOP1_AGREEMENT] == 0.94),
    Row(
        "perplexity is not promised",
        expect=lambda p: "perplexity" not in next(d for d in p.decisions if d.name == "gates").value,
    ),
    Row(
        "a checkpoint as it is, whose config beats its name",
        chat=holding(CHECKPOINT_CONFIG, CHECKPOINT_CONFIG, "org/llama-trt-awq"),
        expect=lambda p: (
            method_is("fp8", scheme="FP8")(p)
            and p.chat.prequantized.format == "trt-llm"
            and "config.json" in p.chat.prequantized.recognized_by
            and p.chat.source.architecture == "LlamaForCausalLM"
        ),
    ),
    Row(
        "a checkpoint inside a repository",
        chat=holding(LLAMA_8B, CHECKPOINT_CONFIG),
        expect=method_is("fp8", scheme="FP8", calibration=None),
    ),
    Row(
        "a checkpoint is nothing to PyTorch, the float model beside it is",
        chat=holding(LLAMA_8B, CHECKPOINT_CONFIG),
        env=PYTORCH,
        expect=lambda p: p.chat.prequantized is None,
    ),
    Row(
        "a checkpoint for two GPUs",
        chat=holding(LLAMA_8B, CHECKPOINT_CONFIG | {"mapping": {"world_size": 2, "tp_size": 2}}),
        on=on(90, gpus=2),
        env={"TENSOR_PARALLEL_SIZE": "2"},
        expect=method_is("fp8"),
    ),
    Row(
        "a name alone is not believed of 16-bit weights",
        chat=model(name="org/llama-trt-awq"),
        expect=lambda p: p.chat.prequantized is None,
    ),
    Row(
        "a ModelOpt folder on PyTorch",
        chat=model(MODELOPT, "org/model", 8 * GIB, HF_QUANT_CONFIG),
        env=PYTORCH,
        expect=lambda p: p.chat.prequantized.format == "modelopt" and p.chat.method == "fp8",
    ),
]


@pytest.mark.parametrize("row", PLANS, ids=lambda row: row.name)
def test_a_request_becomes_a_plan(row: Row) -> None:
    assert row.expect is not None
    assert row.expect(make(row))


PROBLEMS = [
    Row(
        "a batch size is required",
        env={"TRT_MAX_BATCH_SIZE": ""},
        wrong=("TRT_MAX_BATCH_SIZE: expected a number, because it is baked into the engine, found none; set it",),
    ),
    Row(
        "from a checkpoint too",
        env={"TRT_MAX_BATCH_SIZE": "", "TRT_CHECKPOINT_DIR": str(CHECKPOINT)},
        wrong=("TRT_MAX_BATCH_SIZE: expected a number",),
    ),
    Row(
        "fp8 on Ampere",
        "fp8",
        A100,
        wrong=(
            "METHOD: expected a method that trt can run here, found fp8; FP8 arithmetic begins with sm89, this is sm",
        ),
    ),
    Row(
        "int8_sq on Blackwell",
        "int8_sq",
        B200,
        wrong=("METHOD: expected a method that trt can run here, found int8_sq",),
    ),
    Row(
        "AWQ on desktop Blackwell",
        "4bit",
        DESKTOP,
        wrong=(
            "METHOD: expected a method that trt can run here, found int4_awq; TensorRT-LLM lists no INT4 kernels for",
        ),
    ),
    Row(
        "8bit on Ampere on PyTorch",
        "8bit",
        A100,
        env=PYTORCH,
        wrong=(
            "METHOD: expected a method that trt can run here, found int8_sq; INT8 with SmoothQuant runs only as a co",
        ),
    ),
    Row(
        "gptq",
        "gptq",
        wrong=("METHOD: expected one of 4bit, 8bit, awq, int4_awq, fp8, int8_sq in the trt lane, found 'gptq'",),
    ),
    Row(
        "Qwen3 by AWQ",
        chat=model(QWEN3),
        wrong=(
            "CHAT_MODEL: expected a combination known to work in the trt lane, found qwen3 with int4_awq; TensorRT-L",
        ),
    ),
    Row("Qwen3 experts by AWQ", chat=model(QWEN3_MOE), wrong=("CHAT_MODEL: expected a combination known to work",)),
    Row(
        "GPT-OSS",
        "8bit",
        chat=model(LLAMA_8B | {"model_type": "gpt_oss"}),
        wrong=(
            "CHAT_MODEL: expected a combination known to work in the trt lane, found gpt_oss with fp8; TensorRT-LLM",
        ),
    ),
    Row(
        "Mixtral by AWQ on PyTorch",
        chat=model(LLAMA_8B | {"model_type": "mixtral", "num_local_experts": 8}),
        env=PYTORCH,
        wrong=("CHAT_MODEL: expected a combination known to work",),
    ),
    Row(
        "another line of versions",
        on=on(90, packages=H200.packages | {"tensorrt-llm": "1.3.0"}),
        wrong=("tensorrt-llm: expected tensorrt-llm 1.2.x, which compiles engines, found 1.3.0",),
    ),
    Row(
        "a group that does not divide",
        chat=read_facts("embedded", "CHAT_MODEL"),
        env={"TRT_AWQ_BLOCK_SIZE": "128"},
        wrong=(
            "TRT_AWQ_BLOCK_SIZE: expected 128 or 64, and a divisor of the widths 576, 1536, found 128; set it to 64",
        ),
    ),
    Row("a group without kernels", env={"TRT_AWQ_BLOCK_SIZE": "32"}, wrong=("TRT_AWQ_BLOCK_SIZE: expected 128 or 64",)),
    Row(
        "widths that no group divides",
        chat=model(LLAMA_8B | {"hidden_size": 4128}),
        wrong=("CHAT_MODEL: expected widths that 64 divides, for AWQ",),
    ),
    Row(
        "a context longer than the model's",
        env={"TRT_MAX_INPUT_LEN": "131072"},
        wrong=(
            "TRT_MAX_INPUT_LEN: expected 131222 tokens of context, found a model made for 131072; set it to 130922 o",
        ),
    ),
    Row(
        "the same by the runtime's own variable",
        env={"CHAT_MAX_LEN": "131072"},
        wrong=("CHAT_MAX_LEN: expected 131222 tokens of context, found a model made for 131072",),
    ),
    Row(
        "too short to be proven",
        env={"TRT_MAX_INPUT_LEN": "100"},
        wrong=("TRT_MAX_INPUT_LEN: expected at least 512 tokens",),
    ),
    Row(
        "both folders",
        env={"TRT_CHECKPOINT_DIR": str(CHECKPOINT), "TRTLLM_ENGINE_DIR": str(ENGINE)},
        wrong=("TRTLLM_ENGINE_DIR: expected this or TRT_CHECKPOINT_DIR",),
    ),
    Row(
        "a folder on PyTorch",
        env=PYTORCH | {"TRT_CHECKPOINT_DIR": str(CHECKPOINT)},
        wrong=("TRT_BACKEND: expected engine",),
    ),
    Row(
        "an engine for a checkpoint",
        env={"TRT_CHECKPOINT_DIR": str(ENGINE)},
        wrong=("TRT_CHECKPOINT_DIR: expected a folder of tensorrt-llm, found",),
    ),
    Row(
        "an engine of another version",
        on=on(90, packages=H200.packages | {"tensorrt-llm": "1.2.0"}),
        env={"TRTLLM_ENGINE_DIR": str(ENGINE)},
        wrong=("TRTLLM_ENGINE_DIR: expected an engine of tensorrt-llm 1.2.0, found 1.2.1",),
    ),
    Row(
        "an engine that is too small",
        env={"TRTLLM_ENGINE_DIR": str(ENGINE), "TRT_MAX_BATCH_SIZE": "17"},
        wrong=("TRT_MAX_BATCH_SIZE: expected at most 16, baked into TRTLLM_ENGINE_DIR, found 17",),
    ),
    Row(
        "an engine for two GPUs",
        env={"TRTLLM_ENGINE_DIR": str(DATA / "engines/mistral-fp8-tp2")},
        wrong=("TRTLLM_ENGINE_DIR: expected TENSOR_PARALLEL_SIZE 2",),
    ),
    Row(
        "a source in vLLM's format",
        chat=model(LLAMA_8B | {"quantization_config": {"quant_method": "compressed-tensors", "bits": 4}}, size=5 * GIB),
        wrong=("CHAT_MODEL: expected a source in float, or one of trt-llm that trt can run",),
    ),
    *(
        Row(
            f"{name} says that it is quantized, and holds no checkpoint",
            chat=model(LLAMA_8B, name, size=5 * GIB),
            wrong=(
                f"CHAT_MODEL: expected a tensorrt-llm checkpoint in {name}, there or in trt-llm/checkpoints, "
                "found none, though its name",
            ),
        )
        for name in (
            "org/llama-trt-awq",
            "org/llama-TRT-FP8",
            "org/llama-trt-llm-8bit",
            "org/trt-llama-8-bit",
            "org/llama-trt-int8",
            "org/llama-trt-int-8",
        )
    ),
    Row(
        "a checkpoint in a format of its own",
        chat=holding(LLAMA_8B, CHECKPOINT_CONFIG | {"quantization": {"quant_algo": "W4A8_AWQ"}}),
        wrong=("CHAT_MODEL: expected a checkpoint in one of int4_awq, fp8, int8_sq, found w4a8_awq",),
    ),
    Row(
        "a checkpoint for another number of GPUs",
        chat=holding(LLAMA_8B, CHECKPOINT_CONFIG | {"mapping": {"world_size": 2}}),
        wrong=("TENSOR_PARALLEL_SIZE: expected 2, which the checkpoint was made for, found 1",),
    ),
    Row(
        "a checkpoint in FP8 on Ampere",
        on=A100,
        chat=holding(LLAMA_8B, CHECKPOINT_CONFIG),
        wrong=("CHAT_MODEL: expected a source that trt can run here, found fp8; FP8 arithmetic begins with sm89",),
    ),
    Row(
        "a ModelOpt folder that TensorRT-LLM would not recognize",
        chat=model(MODELOPT, size=8 * GIB),
        env=PYTORCH,
        wrong=("CHAT_MODEL: expected hf_quant_config.json, where TensorRT-LLM reads how the model is quantized",),
    ),
    Row(
        "no quantizer",
        on=replace(HOPPER, quantizer=None),
        wrong=("QUANTIZE_PYTHON: expected an environment with nvidia-modelopt and tensorrt-llm, found none",),
    ),
    Row("no TensorRT-LLM", on=on(90, packages={}), wrong=("--trt: expected tensorrt-llm to be installed, found none",)),
    Row(
        "an unknown backend",
        env={"TRT_BACKEND": "onnx"},
        wrong=("TRT_BACKEND: expected engine or pytorch, found 'onnx'",),
    ),
]


@pytest.mark.parametrize("row", PROBLEMS, ids=lambda row: row.name)
def test_a_wrong_request_gives_every_problem_in_one_line_each(row: Row) -> None:
    with pytest.raises(WrongRequestError) as error:
        make(row)
    lines = [str(problem) for problem in error.value.problems]
    assert len(lines) == len(row.wrong), lines
    for line, expected in zip(lines, row.wrong, strict=True):
        assert line.startswith(expected), line
        assert "\n" not in line


def test_a_machine_without_a_gpu_is_told_all_that_is_missing() -> None:
    here = Hardware(Machine(packages={}), free_disk=2000 * GIB, quantizer=None)
    with pytest.raises(WrongRequestError) as error:
        make(Row("nothing here", on=here, env={"TRT_MAX_BATCH_SIZE": ""}))
    found = {str(problem).partition(":")[0] for problem in error.value.problems}
    assert found >= {"--trt", "TRT_MAX_BATCH_SIZE", "QUANTIZE_PYTHON"}


@pytest.mark.parametrize(
    ("env", "lines"),
    [
        ({}, ("quantize: int4_awq (W4A16, groups of 128) on cuda", f"build: lay out the artifact and compile {LABEL}")),
        (PYTORCH, ("quantize: int4_awq (W4A16, groups of 128) on cuda", "build: lay out the artifact")),
        (
            {"TRT_CHECKPOINT_DIR": str(CHECKPOINT)},
            (f"quantize: nothing, {CHECKPOINT} holds W4A16", f"build: lay out the artifact and compile {LABEL}"),
        ),
        (
            {"TRTLLM_ENGINE_DIR": str(ENGINE)},
            (f"quantize: nothing, {ENGINE} holds W4A16", f"build: lay out the artifact and take the engine {ENGINE}"),
        ),
    ],
    ids=["engine", "pytorch", "checkpoint", "engine that exists"],
)
def test_the_plan_tells_what_is_quantized_and_compiled(env: dict[str, str], lines: tuple[str, ...]) -> None:
    plan = make(Row("told", env=env))
    told = [line for line in steps(plan) if line.startswith(("quantize", "build"))]
    assert told == list(lines)
    console = Console(record=True, file=io.StringIO(), width=200)
    show_plan(plan, console)
    compiles = "compile " in lines[1]
    assert ("compiling the engine comes on top" in console.export_text()) is compiles


def test_what_was_wrong_with_a_value_is_not_told_again_of_its_default() -> None:
    with pytest.raises(WrongRequestError) as error:
        make(Row("a batch size that is no number", env={"TRT_MAX_BATCH_SIZE": "many"}))
    assert [str(problem) for problem in error.value.problems] == [
        "TRT_MAX_BATCH_SIZE: expected a valid integer, found 'many'"
    ]
