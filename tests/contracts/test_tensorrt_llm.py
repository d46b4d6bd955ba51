"""Every call that the lane makes of TensorRT-LLM, against its recorded interface.

`tests/data/trtllm_api.json` holds names, parameters, flags and enum members of TensorRT-LLM 1.2, each with how sure it
is. What was read in the release itself (`exact-1.2.0`) fails a test; what was read near it warns.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline import lanes
from pipeline.build import trt as building
from pipeline.plan import ChatPlan, TrtPlan
from pipeline.quantize import QuantizeJob, trt_checkpoint
from pipeline.quantize import trt as quantizing
from pipeline.quantize.trt_folder import CONFIGURATIONS
from pipeline.source import SourceFacts
from runtime.artifact import Limits
from runtime.engines import EngineOptions, Sampling
from runtime.engines.trt.arguments import kv_cache_arguments, llm_arguments, sampling_arguments
from runtime.engines.trt.folders import METHOD_OF_ALGORITHM, EngineFolder
from runtime.engines.trt.tokens import SpecialTokens
from tests.harness.trt import api
from tests.harness.trt.lane import installed

DATA = Path(__file__).parents[1] / "data"
ENGINE = DATA / "trt/engines/llama-int4-awq"
SPECIAL = SpecialTokens(0, 0, (1,))
JOB = QuantizeJob(
    "int4_awq", Path("model"), Path("out"), 64, True, (), Path("samples"), 512, 7, "cuda", "float16", 2, "engine"
)

pytestmark = pytest.mark.filterwarnings("default::tests.contracts.test_tensorrt_llm.NearMiss")


class NearMiss(UserWarning):
    """The lane differs from what was read near the release, which the release itself may not say."""


def chat_plan(method: str = "int4_awq", **limits: int) -> ChatPlan:
    sizes = {"max_batch_size": 8, "max_input_len": 5525, "max_output_len": 150, "max_model_len": 5675} | limits
    facts = SourceFacts("model", "folder", "model")
    plan = ChatPlan(
        facts, method, "W4A16", 64, True, (), None, None, Limits(**sizes), "float16", None, 1, TrtPlan("label")
    )
    return plan


def accepts(name: str, keywords: dict[str, Any]) -> str | None:
    """What the recorded callable or model says against a call; none when it takes it."""
    try:
        bound = api.bind(name, (), keywords)
    except TypeError as error:
        return str(error)
    known = api.entry(name).get("kwargs_must_be_in", "").partition(" ")[0]
    if known:
        fields = {field["name"] for field in api.parameters(f"tensorrt_llm.llmapi.{known}")}
        if unknown := sorted(bound.get("kwargs", {}).keys() - fields):
            return f"{name} got invalid arguments: {', '.join(unknown)}"
    return None


def hold(name: str, keywords: dict[str, Any]) -> None:
    """Fail, or warn where the interface was read near the release only."""
    if (wrong := accepts(name, keywords)) is None:
        return
    if api.entry(name)["source"]["confidence"].startswith("exact"):
        pytest.fail(wrong)
    warnings.warn(wrong, NearMiss, stacklevel=2)


def unknown_flags(words: Iterable[str]) -> list[str]:
    """What of a `trtllm-build` command line is not listed: flags, and words that a flag does not take."""
    listed = {flag["flag"]: flag for flag in api.API["cli"]["trtllm-build"]}
    given = list(words)
    wrong = []
    for flag, value in zip(given[::2], given[1::2], strict=True):
        if flag not in listed or listed[flag].get("store_true") or listed[flag].get("deprecated"):
            wrong.append(flag)
        elif (choices := listed[flag].get("choices")) and value not in choices:
            wrong.append(f"{flag} {value}")
    return wrong


EVERY_OPTION = EngineOptions(
    gpu_fraction=0.7, max_num_seqs=4, max_num_batched_tokens=4096, max_model_len=900, enforce_eager=True,
    kv_free_fraction=0.5, kv_block_reuse=False,
)  # fmt: skip


@pytest.mark.parametrize("options", [EngineOptions(), EVERY_OPTION])
@pytest.mark.parametrize(
    ("backend", "callable_name"), [("engine", "tensorrt_llm._tensorrt_engine.LLM"), ("pytorch", "tensorrt_llm.LLM")]
)
def test_the_models_constructor_takes_every_argument(backend: Any, callable_name: str, options: EngineOptions) -> None:
    arguments = llm_arguments(ENGINE, options, tokenizer=Path("tokenizer"), backend=backend)
    hold(f"{callable_name}.__init__", arguments | {"kv_cache_config": None})
    hold("KvCacheConfig", kv_cache_arguments(options, EngineFolder.read(ENGINE) if backend == "engine" else None))


def test_a_compiled_engine_is_told_nothing_about_the_caches_type() -> None:
    assert "dtype" not in kv_cache_arguments(EngineOptions(), EngineFolder.read(ENGINE))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0, top_k=0, seed=1, ignore_eos=True)])
def test_the_sampling_parameters_exist(sampling: Sampling) -> None:
    hold("SamplingParams", sampling_arguments(sampling, SPECIAL))


def test_every_field_of_our_sampling_is_set_explicitly() -> None:
    arguments = sampling_arguments(Sampling(), SPECIAL)
    renamed = {"show_special_tokens": "skip_special_tokens"}
    drawn = set(Sampling.__dataclass_fields__) - {"each_token"}  # TensorRT-LLM tells each step by itself
    assert {renamed.get(name, name) for name in drawn} <= arguments.keys()
    assert {"end_id", "pad_id", "stop_token_ids", "logprobs", "prompt_logprobs"} <= arguments.keys()


def test_the_stand_ins_replies_have_what_was_recorded_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/unit` runs the lane on the stand-in, which binds every call: what the lane reads of a reply is here."""
    completion, output = api.entry("CompletionOutput"), api.entry("RequestOutput")
    with installed(monkeypatch) as stand_in:
        made = stand_in.RequestOutput(None, [1], None)
        offered = {*vars(made), *vars(type(made))}
        assert {name for name in offered if not name.startswith("_")} <= {*output["attributes"], *output["methods"]}
        assert vars(made.outputs[0]).keys() <= {*completion["fields"], *completion["properties"]}
    assert set(completion["finish_reason_values"]) == {"stop", "length", "timeout", "cancelled", None}


@pytest.mark.parametrize("method", ["int4_awq", "fp8", "int8_sq"])
def test_the_quantizer_takes_every_argument(method: str) -> None:
    arguments = trt_checkpoint.arguments(JOB, Path("out"), 32, 512)
    name = "tensorrt_llm.quantization.quantize_and_export"
    assert accepts(name, arguments) is None
    required = {parameter["name"] for parameter in api.parameters(name) if parameter.get("required")}
    assert required <= arguments.keys()
    given = {"dtype": JOB.dtype, "tp_size": JOB.tensor_parallel, "awq_block_size": JOB.group_size, "seed": JOB.seed}
    assert {argument: arguments[argument] for argument in given} == given
    assert method in api.API["enums"]["qformat"]
    assert CONFIGURATIONS[method] == api.API["enums"]["qformat_to_mtq_cfg"][method]


def test_every_method_of_the_lane_is_a_format_and_an_algorithm_of_tensorrt_llm() -> None:
    enums = api.API["enums"]
    for algorithm, method in METHOD_OF_ALGORITHM.items():
        assert algorithm in enums["QuantAlgo"]
        assert enums["QuantAlgo_to_qformat"][algorithm] == method
        assert algorithm in enums["MODELOPT_FLOW_QUANTIZATIONS"]
    assert set(lanes.LANES["trt"].methods) == set(METHOD_OF_ALGORITHM.values()) == set(quantizing.FORMATS)


@pytest.mark.parametrize("method", ["int4_awq", "fp8", "int8_sq"])
def test_trtllm_build_lists_every_flag_and_word(method: str) -> None:
    words = building.flags(Path("checkpoint"), Path("engine"), chat_plan(method))
    assert unknown_flags(words) == []
    assert len(words[::2]) == len(set(words[::2]))


def test_the_limits_reach_trtllm_build() -> None:
    words = building.flags(
        Path("checkpoint"), Path("engine"), chat_plan(max_input_len=9000, max_model_len=9150, tensor_parallel_size=2)
    )
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given["--max_batch_size"] == "8"
    assert given["--max_input_len"] == "9000"
    assert given["--max_seq_len"] == "9150"
    assert given["--max_num_tokens"] == "9000"
    assert given["--workers"] == "2"
    assert given["--checkpoint_dir"] == "checkpoint"
    assert given["--output_dir"] == "engine"


def test_the_engines_limits_are_read_where_tensorrt_llm_writes_them() -> None:
    paths = set(api.API["engine_dir"]["useful_paths"])
    assert {
        f"build_config.{name}" for name in ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
    } <= paths
    assert {
        "pretrained_config.architecture",
        "pretrained_config.dtype",
        "pretrained_config.mapping.world_size",
    } <= paths
    assert {"pretrained_config.quantization.quant_algo", "version"} <= paths


# The contract itself can fail.


def test_a_misspelt_argument_is_noticed() -> None:
    arguments = llm_arguments(ENGINE, EngineOptions(), tokenizer=Path("tokenizer"), backend="engine")
    assert "max_batchsize" in (
        accepts("tensorrt_llm._tensorrt_engine.LLM.__init__", arguments | {"max_batchsize": 1}) or ""
    )
    with pytest.raises(pytest.fail.Exception, match="topk"):
        hold("SamplingParams", sampling_arguments(Sampling(), SPECIAL) | {"topk": 1})


def test_an_argument_of_the_other_backend_is_noticed() -> None:
    arguments = llm_arguments(ENGINE, EVERY_OPTION, tokenizer=Path("tokenizer"), backend="pytorch")
    assert "cuda_graph_config" in (accepts("tensorrt_llm._tensorrt_engine.LLM.__init__", arguments) or "")
    assert "build_config" in (accepts("tensorrt_llm.LLM.__init__", arguments | {"build_config": None}) or "")


def test_a_missing_argument_of_the_quantizer_warns_because_it_was_read_near_the_release() -> None:
    arguments = trt_checkpoint.arguments(JOB, Path("out"), 32, 512)
    del arguments["cp_size"]
    with pytest.warns(NearMiss, match="cp_size"):
        hold("tensorrt_llm.quantization.quantize_and_export", arguments)


@pytest.mark.parametrize(
    "words", [("--max_output_len", "90"), ("--gemm_plugin", "bfloat32"), ("--use_custom_all_reduce", "x")]
)
def test_an_unknown_flag_or_word_is_noticed(words: tuple[str, ...]) -> None:
    assert unknown_flags(words)
