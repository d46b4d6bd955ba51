"""Numbers by which a model is shared: what we plan and take is what vLLM's own configuration says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.sharing import layers_a_stage
from runtime.engines import EngineOptionError, EngineOptions
from runtime.engines.vllm.arguments import engine_arguments
from runtime.engines.vllm.engine import VllmEngine
from tests.harness.models import tiny

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.wide_llama(tmp_path_factory.mktemp("shared") / "model")


def options(tensor: int, stages: int) -> EngineOptions:
    return EngineOptions(
        max_model_len=256, cpu_kv_cache_gib=0.05, tensor_parallel_size=tensor, pipeline_parallel_size=stages
    )


@given(data=st.data(), layers=st.integers(1, 130))
def test_the_fullest_stage_has_the_layers_that_vllm_gives_it(data: st.DataObject, layers: int) -> None:
    from vllm.distributed.utils import get_pp_indices

    stages = data.draw(st.integers(1, layers))
    ends = [get_pp_indices(layers, rank, stages) for rank in range(stages)]
    assert max(end - start for start, end in ends) == layers_a_stage(layers, stages)
    assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])]


@pytest.mark.parametrize(("tensor", "stages"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
def test_ranks_are_processes_of_one_host(model: Path, tensor: int, stages: int) -> None:
    parallel = engine_arguments(model, options(tensor, stages)).create_engine_config().parallel_config
    assert parallel.world_size == tensor * stages
    assert parallel.nnodes == 1
    # vLLM's build for a CPU has a process of its own for one rank too.
    assert parallel.distributed_executor_backend in ({"mp"} if tensor * stages > 1 else {"mp", "uni"})


@pytest.mark.parametrize(("tensor", "stages"), [(1, 2), (2, 2), (4, 3)])
async def test_a_model_whose_code_knows_no_stages_is_refused_in_one_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, tensor: int, stages: int
) -> None:
    from vllm.model_executor.models import ModelRegistry

    monkeypatch.setattr(type(ModelRegistry), "is_pp_supported_model", lambda *_: False)
    with pytest.raises(EngineOptionError) as caught:
        await VllmEngine(model, options(tensor, stages)).start()
    assert str(caught.value).startswith(
        "TENSOR_PARALLEL_SIZE, PIPELINE_PARALLEL_SIZE: expected numbers by which vLLM can share the model, found "
        f"{tensor} and {stages}; Pipeline parallelism is not supported for this model"
    )
    assert "\n" not in str(caught.value)


async def test_what_is_wrong_with_a_model_alone_is_not_laid_on_its_sharing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    def unknown(*_: object) -> None:
        raise NotImplementedError("nobody wrote it")

    monkeypatch.setattr(AsyncEngineArgs, "create_engine_config", unknown)
    with pytest.raises(NotImplementedError, match="nobody wrote it"):
        await VllmEngine(model, options(1, 1)).start()
