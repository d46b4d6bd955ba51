"""From settings and an artifact's limits to what is served."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.artifact import BuildMetadata, ChatModel, Limits, Platform, Quantization, Source, ToolModel
from runtime.deployment.serving import ServingPlan, plan
from runtime.deployment.settings import SettingsError
from runtime.text.prompt import Budgets
from tests.harness.scripted import settings
from tests.harness.source.no_reading import no_reading

SOURCE = Source(repo="embedded", content_sha256="0")


def metadata(*, chat: bool = True, tool: bool = True, lane: Any = "vllm", **limits: int) -> BuildMetadata:
    sizes = {"max_batch_size": 16, "max_input_len": 6000, "max_output_len": 512, "max_model_len": 8192, **limits}
    quantization = Quantization(method="none", scheme="BF16")
    return BuildMetadata(
        lane=lane,
        engine="trt" if lane == "trt" else "vllm",
        created_at="now",
        chat=ChatModel(source=SOURCE, quantization=quantization, limits=Limits(**sizes), dtype="b") if chat else None,
        tool=ToolModel(source=SOURCE, max_tokens=512) if tool else None,
        platform=Platform(python="3.11", machine="x86_64"),
        files=(),
        digest="",
    )


def planned(artifact: BuildMetadata, **values: Any) -> ServingPlan:
    given = settings(**values)
    with no_reading():
        return plan(given, artifact)


def problems(artifact: BuildMetadata, **values: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        planned(artifact, **values)
    return caught.value.problems


@pytest.mark.parametrize(
    ("chat", "tool", "asked", "mode"),
    [
        (True, True, None, "both"),
        (True, False, None, "chat"),
        (False, True, None, "tool"),
        (True, True, "chat", "chat"),
        (True, True, "tool", "tool"),
        (False, True, "tool", "tool"),
    ],
)
def test_the_mode_is_what_the_artifact_holds_or_less(chat: bool, tool: bool, asked: str | None, mode: str) -> None:
    serving = planned(metadata(chat=chat, tool=tool), deploy_mode=asked)
    assert serving.mode == mode
    assert (serving.chat is not None) == (mode != "tool")
    assert (serving.tool is not None) == (mode != "chat")


def test_a_mode_that_the_artifact_cannot_give_is_refused() -> None:
    assert problems(metadata(tool=False), deploy_mode="both") == [
        "DEPLOY_MODE: expected chat (that is what the artifact holds), found both"
    ]
    assert "expected tool" in problems(metadata(chat=False), deploy_mode="chat")[0]


@pytest.mark.parametrize(
    ("lane", "wanted", "fits"),
    [("cpu", "vllm", True), ("cpu", "cpu", True), ("vllm", "vllm", True), ("vllm", "trt", False), ("trt", "trt", True)],
)
def test_the_engine_must_be_the_artifacts(lane: str, wanted: str, fits: bool) -> None:
    if fits:
        planned(metadata(lane=lane), inference_engine=wanted)
    else:
        assert problems(metadata(lane=lane), inference_engine=wanted)[0].startswith("INFERENCE_ENGINE: expected vllm")


def test_gpu_memory_is_shared_when_both_are_served() -> None:
    both, alone = planned(metadata()), planned(metadata(tool=False))
    assert both.chat is not None
    assert both.tool is not None
    assert alone.chat is not None
    assert (both.chat.options.gpu_fraction, both.tool.gpu_fraction) == (0.70, 0.20)
    assert alone.chat.options.gpu_fraction == 0.90
    assert "at most 1" in problems(metadata(), chat_gpu_frac=0.9, tool_gpu_frac=0.2)[0]


def test_budgets_are_the_contracts_where_the_artifact_has_room() -> None:
    serving = planned(metadata())
    assert serving.chat is not None
    assert serving.chat.budgets == Budgets(persona=2000, history=3000, utterance=500, input=5525)
    assert serving.chat.max_out == 150
    assert serving.chat.options.max_model_len is None


def test_budgets_shrink_to_a_small_context() -> None:
    serving = planned(metadata(max_input_len=1000, max_output_len=100, max_model_len=1024))
    assert serving.chat is not None
    budgets = serving.chat.budgets
    assert serving.chat.max_out == 100
    assert budgets.input + serving.chat.max_out <= 1024
    assert budgets.persona + budgets.history + budgets.utterance <= budgets.input


def test_asking_for_more_than_the_artifact_has_is_refused_all_at_once() -> None:
    found = problems(
        metadata(max_input_len=1000, max_output_len=100, max_model_len=1024),
        chat_max_len=2000,
        chat_max_out=200,
        tool_history_tokens=1000,
        history_max_tokens=3000,
    )
    names = [problem.partition(":")[0] for problem in found]
    assert names == ["CHAT_MAX_OUT", "CHAT_MAX_LEN", "HISTORY_MAX_TOKENS", "TOOL_HISTORY_TOKENS"]


def test_a_longer_context_may_be_allowed() -> None:
    serving = planned(metadata(max_model_len=2048), chat_max_len=4000, vllm_allow_long_max_model_len=True)
    assert serving.chat is not None
    assert serving.chat.options.max_model_len == 4150


def test_every_engine_variable_reaches_the_options() -> None:
    serving = planned(
        metadata(),
        max_num_seqs_chat=8,
        max_num_batched_tokens_chat=4096,
        kv_dtype="fp8",
        vllm_attention_backend="FLASH_ATTN",
        enforce_eager=True,
        tensor_parallel_size=2,
        vllm_cpu_kvcache_space=2.5,
        chat_gpu_frac=0.5,
    )
    assert serving.chat is not None
    options = serving.chat.options
    assert serving.batch_size == options.max_num_seqs == 8
    assert options.max_num_batched_tokens == 4096
    assert options.kv_cache_dtype == "fp8"
    assert options.attention_backend == "FLASH_ATTN"
    assert options.enforce_eager is True
    assert options.tensor_parallel_size == 2
    assert options.cpu_kv_cache_gib == 2.5
    assert options.gpu_fraction == 0.5
    trt = planned(metadata(lane="trt"), trt_batch_size=4, max_num_seqs_chat=99)
    assert trt.batch_size == 4


def test_the_thresholds_order_is_setting_artifact_contract() -> None:
    serving = planned(metadata())
    assert serving.tool is not None
    assert (serving.tool.threshold, serving.tool.max_tokens) == (0.66, 512)
    artifact = metadata()
    assert artifact.tool is not None
    own = artifact.model_copy(update={"tool": artifact.tool.model_copy(update={"threshold": 0.5})})
    serving = planned(own)
    assert serving.tool is not None
    assert serving.tool.threshold == 0.5
    serving = planned(own, tool_decision_threshold=0.9)
    assert serving.tool is not None
    assert serving.tool.threshold == 0.9


def test_thought_has_its_room_beside_the_reply() -> None:
    serving = planned(metadata(max_output_len=700), thinking_max_tokens=512).chat
    assert serving is not None
    assert (serving.max_out, serving.thinking) == (150, 512)
    assert serving.budgets.input + serving.max_out + serving.thinking <= 8192
    # A reply gives way before thought does.
    shrunk = planned(metadata(max_output_len=600), thinking_max_tokens=512).chat
    assert shrunk is not None
    assert (shrunk.max_out, shrunk.thinking) == (88, 512)
    assert problems(metadata(), thinking_max_tokens=512) == [
        "CHAT_MAX_OUT + THINKING_MAX_TOKENS: expected at most 512 (the artifact's limit), found 513"
    ]


@pytest.mark.parametrize(
    ("lane", "asked", "told"),
    [
        ("trt", {"tensor_parallel_size": 4}, "TENSOR_PARALLEL_SIZE: expected 2 (compiled into the engine), found 4"),
        ("trt", {"tensor_parallel_size": 1}, "TENSOR_PARALLEL_SIZE: expected 2 (compiled into the engine), found 1"),
        ("trt", {"pipeline_parallel_size": 2}, "PIPELINE_PARALLEL_SIZE: expected 1 in the trt lane, found 2"),
        ("cpu", {"pipeline_parallel_size": 3}, "PIPELINE_PARALLEL_SIZE: expected 1 in the cpu lane, found 3"),
        ("cpu", {"tensor_parallel_size": 4}, None),
        ("trt", {"tensor_parallel_size": 2, "pipeline_parallel_size": 1}, None),
        ("vllm", {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, None),
    ],
)
def test_what_was_compiled_for_a_number_of_gpus_is_served_on_as_many(
    lane: str, asked: dict[str, int], told: str | None
) -> None:
    artifact = metadata(lane=lane, tensor_parallel_size=2, tool=False)
    if told is not None:
        assert problems(artifact, **asked) == [f"{told}; unset it"]
        return
    chat = planned(artifact, **asked).chat
    assert chat is not None
    assert chat.options.tensor_parallel_size == asked["tensor_parallel_size"]
