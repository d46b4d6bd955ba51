"""What vLLM is told of a request, as vLLM itself understands it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines import EngineOptions, Sampling
from runtime.engines.vllm.arguments import engine_arguments, parameters, prepare_environment

pytestmark = pytest.mark.engine

PROMPT = {"type": "token", "prompt_token_ids": [1, 2, 3]}


@pytest.fixture(scope="module")
def processor(chat_folder: Path) -> Any:
    """What vLLM does with a request before its engine has it; it fills in the model's own stop tokens."""
    options = EngineOptions(max_model_len=2048, max_num_seqs=16)
    prepare_environment(options)
    from vllm.v1.engine.input_processor import InputProcessor

    return InputProcessor(engine_arguments(chat_folder, options).create_engine_config())


def sent(processor: Any, params: Any) -> bytes:
    """What the engine process is sent of the parameters."""
    request = processor.process_inputs("1", PROMPT, params, supported_tasks=("generate",))
    return msgspec.msgpack.encode(request.sampling_params)


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.005, 0.8, 2.0]),
    top_p=st.sampled_from([0.5, 1.0]),
    top_k=st.sampled_from([0, 1, 30]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    max_tokens=st.sampled_from([1, 150]),
    seed=st.sampled_from([None, 7]),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([(), (2,), (2, 5)]),
    show_special_tokens=st.booleans(),
)


@given(st.lists(SAMPLINGS, min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_parameters_that_were_used_before_are_sent_as_new_ones_are(processor: Any, samplings: list[Sampling]) -> None:
    kept = {sampling: parameters(sampling) for sampling in samplings}
    for sampling in [*samplings, *samplings]:
        assert sent(processor, kept[sampling]) == sent(processor, parameters(sampling))


def test_what_a_request_is_given_stays_with_it(processor: Any) -> None:
    kept = parameters(Sampling(temperature=0.3))
    request = processor.process_inputs("1", PROMPT, kept, supported_tasks=("generate",))
    request.sampling_params.max_tokens = 1
    assert kept.max_tokens == 150
    assert request.sampling_params.eos_token_id is not None


def test_the_prompts_stop_tokens_come_beside_the_models_and_go_where_ends_are_ignored(processor: Any) -> None:
    def told(sampling: Sampling) -> Any:
        return processor.process_inputs(
            "1", PROMPT, parameters(sampling), supported_tasks=("generate",)
        ).sampling_params

    assert 7 in told(Sampling(stop_token_ids=(7,))).stop_token_ids
    assert told(Sampling(stop_token_ids=(7,), ignore_eos=True)).stop_token_ids == []
    assert told(Sampling()).skip_special_tokens
    assert not told(Sampling(show_special_tokens=True)).skip_special_tokens


def test_nothing_that_differs_between_machines_is_in_the_key_of_a_compile_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vllm import envs

    from runtime.engines.vllm import arguments

    monkeypatch.setattr(arguments, "built_for_cpu", lambda: False)  # on a CPU nothing is compiled ahead

    def factors(cores: set[int], **variables: str) -> dict[str, object]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "sched_getaffinity", lambda _: cores)
            for name in [name for name in os.environ if name.startswith("VLLM_")]:
                patch.delenv(name)
            for name, value in variables.items():
                patch.setenv(name, value)
            before = dict(os.environ)
            arguments.prepare_environment(EngineOptions(tensor_parallel_size=2))
            found = envs.compile_factors()
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            return found

    built = factors({0, 1}, HOME="/root", VLLM_CACHE_ROOT="/build/compile_cache")
    served = factors(
        set(range(2, 64)),
        HOME="/home/yap",
        TMPDIR=str(tmp_path),
        VLLM_CACHE_ROOT=str(tmp_path / "cache"),
        XDG_CACHE_HOME="/c",
        XDG_CONFIG_HOME="/d",
        CUDA_VISIBLE_DEVICES="2,3",
        VLLM_LOGGING_LEVEL="INFO",
        OMP_NUM_THREADS="3",
    )
    assert {name for name in built if built[name] != served[name]} == set()
