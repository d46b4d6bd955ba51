"""Several GPUs for one model in a plan: what is refused, what is shown, and what each of them holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.sharing import layers_a_stage
from pipeline.lanes import VLLM
from pipeline.plan import BuildPlan
from pipeline.plan.estimate import BuildSize, estimate, serving_memory
from pipeline.problem import WrongRequestError
from pipeline.revalidate import too_few
from pipeline.steps.stage_runner import FetchedModel, StageRunner
from pipeline.validate import chat_figures
from runtime import artifact
from runtime.artifact import Limits
from runtime.engines import EngineOptions
from runtime.host.machine import Gpu, Machine
from tests.harness.builds.plans import GIB, LLAMA_8B, Row, hardware, make, model
from tests.harness.builds.progress import RecordedProgress
from tests.hub.golden import GOLDEN

H100 = Gpu("H100", 90, 80 * GIB, 80 * GIB)
SMALL = Gpu("H100", 90, 40 * GIB, 40 * GIB)
BUSY = Gpu("H100", 90, 80 * GIB, GIB)
L4 = Gpu("L4", 89, 24 * GIB, 24 * GIB)
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}


def planned(
    *gpus: Gpu, tensor: int = 1, stages: int = 1, lane: str = "vllm", method: str = "fp8", **config: Any
) -> BuildPlan:
    env = {"TENSOR_PARALLEL_SIZE": str(tensor), "PIPELINE_PARALLEL_SIZE": str(stages), "TRT_MAX_BATCH_SIZE": "8"}
    here = Machine(gpus=gpus, memory_bytes=900 * GIB, packages={"vllm": "0.30.0", "tensorrt-llm": "1.2.1"})
    chat = model(LLAMA_8B | config)
    return make(Row("shared", lane=lane, method=method, on=hardware(here), chat=chat, tool=None, env=env))


def problems(*gpus: Gpu, **asked: Any) -> list[str]:
    with pytest.raises(WrongRequestError) as caught:
        planned(*gpus, **asked)
    return [str(problem) for problem in caught.value.problems]


def decided(plan: BuildPlan, name: str) -> tuple[str, str]:
    (found,) = [decision for decision in plan.decisions if decision.name == name]
    return found.value, found.reason


@pytest.mark.parametrize(
    ("tensor", "stages", "config", "told"),
    [
        (2, 1, {}, "TENSOR_PARALLEL_SIZE 2: each has 16 of 32 heads of every layer; of keys and values 4 of 8"),
        (
            8,
            1,
            {"num_key_value_heads": 4},
            "TENSOR_PARALLEL_SIZE 8: each has 4 of 32 heads of every layer; of keys and values 1 of 4, "
            "2 GPUs the same one",
        ),
        (
            4,
            1,
            {"kv_lora_rank": 512, "qk_rope_head_dim": 64},
            "TENSOR_PARALLEL_SIZE 4: each has 8 of 32 heads of every layer; keys and values, one vector for all heads, "
            "are on every GPU",
        ),
        (1, 3, {}, "PIPELINE_PARALLEL_SIZE 3: 11 layers at most in a stage"),
        (
            2,
            2,
            {},
            "TENSOR_PARALLEL_SIZE 2: each has 16 of 32 heads of every layer; of keys and values 4 of 8; "
            "PIPELINE_PARALLEL_SIZE 2: 16 layers at most in a stage",
        ),
    ],
)
def test_a_plan_shows_what_each_gpu_gets(tensor: int, stages: int, config: dict[str, Any], told: str) -> None:
    made = planned(*[H100] * 8, tensor=tensor, stages=stages, **config)
    assert made.chat is not None
    assert made.chat.limits.gpus == tensor * stages
    assert decided(made, "GPUs a model") == (str(tensor * stages), told)
    value, reason = decided(made, "memory")
    assert "GiB on the fullest GPU)" in value
    assert reason.startswith(f"{tensor * stages} × H100")


def test_one_gpu_is_not_spoken_of() -> None:
    made = planned(H100, H100)
    assert "GPUs a model" not in {decision.name for decision in made.decisions}
    assert "fullest" not in decided(made, "memory")[0]


@pytest.mark.parametrize(
    ("gpus", "asked", "told"),
    [
        ([H100], {"tensor": 2}, "TENSOR_PARALLEL_SIZE: expected at most 1, the GPUs here, found 2"),
        ([H100] * 3, {"stages": 4}, "PIPELINE_PARALLEL_SIZE: expected at most 3, for the 3 GPUs here, found 4"),
        (
            [H100] * 3,
            {"tensor": 2, "stages": 2},
            "PIPELINE_PARALLEL_SIZE: expected at most 1, for the 3 GPUs here, found 2, each on 2",
        ),
        (
            [H100] * 8,
            {"stages": 3, "num_hidden_layers": 2},
            "PIPELINE_PARALLEL_SIZE: expected at most 2, the model's layers, found 3",
        ),
        (
            [H100] * 8,
            {"stages": 2, "lane": "trt", "method": "8bit"},
            "PIPELINE_PARALLEL_SIZE: expected 1 in the trt lane, found 2; use the vllm lane",
        ),
        (
            [H100, L4],
            {"tensor": 2},
            "TENSOR_PARALLEL_SIZE: expected 2 GPUs that are alike, found H100 (sm90, 80 GiB) and, as GPU 1, "
            "L4 (sm89, 24 GiB); choose others with CUDA_VISIBLE_DEVICES",
        ),
        (
            [H100, SMALL],
            {"stages": 2},
            "PIPELINE_PARALLEL_SIZE: expected 2 GPUs that are alike, found H100 (sm90, 80 GiB) and, as GPU 1, "
            "H100 (sm90, 40 GiB); choose others with CUDA_VISIBLE_DEVICES",
        ),
        ([H100, BUSY], {"tensor": 2}, "GPU memory: expected 9.2 GiB, found 1.0 GiB free on H100"),
        ([SMALL] * 2, {"tensor": 2, **LLAMA_70B}, "GPU memory: expected 68.0 GiB, found 40.0 GiB on H100"),
    ],
)
def test_what_cannot_be_shared_is_told_in_one_line(gpus: list[Gpu], asked: dict[str, Any], told: str) -> None:
    (line,) = problems(*gpus, **asked)
    assert line.startswith(told)


def test_a_gpu_that_is_not_used_is_not_asked() -> None:
    assert planned(H100, H100, L4, tensor=2).chat
    assert planned(H100, BUSY).chat


def test_a_model_too_large_for_one_gpu_is_measured_on_as_many_as_it_is_served_by() -> None:
    """The float model too, which is the larger one."""
    (line,) = problems(H100, **LLAMA_70B)
    assert line.startswith("GPU memory: expected ")
    assert planned(H100, H100, H100, H100, tensor=4, **LLAMA_70B).chat
    assert planned(H100, H100, H100, H100, tensor=2, stages=2, **LLAMA_70B).chat


SIZES = st.builds(
    BuildSize,
    quantized_bytes=st.integers(1, 2**38),
    float_bytes=st.integers(1, 2**39),
    cache_bytes=st.integers(1, 2**33),
    parallel=st.sampled_from([1, 2, 4, 8]),
    on_gpu=st.just(True),
    prequantized=st.booleans(),
)


@given(size=SIZES, layers=st.integers(1, 100), stages=st.integers(1, 8), outside=st.integers(0, 2**33))
def test_all_gpus_together_hold_the_whole_model(size: BuildSize, layers: int, stages: int, outside: int) -> None:
    stages = min(stages, layers)
    staged = replace(size, stages=stages, stage_share=layers_a_stage(layers, stages) / layers, outside_bytes=outside)
    assert staged.gpu_weight_bytes * staged.gpus >= size.quantized_bytes - staged.gpus
    assert staged.gpu_weight_bytes <= size.quantized_bytes
    assert estimate(staged, cores=1).gpu_bytes <= estimate(replace(size, parallel=1), cores=1).gpu_bytes
    found = serving_memory(staged, gpu_bytes=80 * GIB, beside_tool=False)
    assert found.cache_bytes + staged.gpu_weight_bytes * staged.gpus <= 80 * GIB * staged.gpus or not found.cache_bytes


@pytest.mark.parametrize(
    ("tensor", "stages", "gpus", "told"),
    [
        (2, 1, [H100], "ARTIFACT: expected 2 GPUs, which share the model, found 1; run it where it will serve"),
        (2, 2, [H100] * 3, "ARTIFACT: expected 4 GPUs, which share the model, found 3; run it where it will serve"),
        (2, 1, [H100, L4], "ARTIFACT: expected 2 GPUs that are alike, found H100 (sm90, 80 GiB) and, as GPU 1, L4"),
        (2, 1, [H100, H100, L4], None),
        (1, 1, [H100, L4], None),
    ],
)
def test_an_artifact_is_proven_on_as_many_gpus_as_will_serve_it(
    tensor: int, stages: int, gpus: list[Gpu], told: str | None
) -> None:
    chat = artifact.read(GOLDEN / "vllm-fp8").chat
    assert chat is not None
    sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": stages}
    shared = chat.model_copy(update={"limits": chat.limits.model_copy(update=sizes)})
    problem = too_few(shared, gpus)
    assert problem is None if told is None else str(problem).startswith(told)


@pytest.mark.parametrize(("tensor", "stages"), [(1, 1), (4, 1), (2, 2)])
def test_the_float_model_is_measured_by_as_many_gpus_and_again_by_another_number(
    tensor: int, stages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[EngineOptions, dict[str, Any]]] = []

    class Runner(StageRunner):
        def stage(self, name: str, inputs: dict[str, Any], work: Callable[[Path], object]) -> Any:
            work(tmp_path)
            seen[-1] = (seen[-1][0], inputs)
            return SimpleNamespace(output=tmp_path)

    def measure(folder: Path, out: Path, *, options: EngineOptions, **_: object) -> None:
        seen.append((options, {}))

    runner = Runner(tmp_path, Machine(gpus=(H100,)), RecordedProgress())
    monkeypatch.setattr(chat_figures, "measure_reference", measure)
    limits = Limits(
        max_batch_size=1,
        max_input_len=8,
        max_output_len=8,
        max_model_len=64,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=stages,
    )
    runner.reference(FetchedModel(tmp_path, "content"), VLLM, limits, dtype="bfloat16")
    ((options, inputs),) = seen
    assert (options.tensor_parallel_size, options.pipeline_parallel_size) == (tensor, stages)
    assert options.max_model_len == 64
    assert inputs.get("shared") == (None if tensor * stages == 1 else [tensor, stages])
