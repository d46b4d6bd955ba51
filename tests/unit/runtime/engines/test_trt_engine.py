"""TensorRT-LLM's engine, through the stand-in that enforces its signatures."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from runtime.artifact import ArtifactError
from runtime.engines import Delta, EngineDeadError, EngineOptionError, EngineOptions, Sampling
from runtime.engines.trt.arguments import llm_arguments, sampling_arguments
from runtime.engines.trt.engine import ENVIRONMENT, TrtEngine
from runtime.engines.trt.tokens import SpecialTokens
from runtime.host.cuda import CudaError, Failure
from tests.harness.streaming import deltas as deltas_of
from tests.harness.trt.lane import H200, installed, model
from tests.harness.waiting import eventually

GREEDY = Sampling(temperature=0.0, max_tokens=5)
GOLDEN = Path(__file__).parents[3] / "data/trt/engines"
LLAMA = GOLDEN / "llama-int4-awq"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model(tmp_path / "model")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch):
    with installed(monkeypatch) as module:
        yield module


@pytest_asyncio.fixture
async def engine(folder: Path, stand_in: Any) -> AsyncIterator[TrtEngine]:
    engine = TrtEngine(LLAMA, EngineOptions(max_num_seqs=4), tokenizer=folder, backend="engine")
    await engine.start()
    yield engine
    await engine.shutdown()


async def text_of(engine: TrtEngine, prompt: list[int], sampling: Sampling) -> tuple[str, str | None]:
    deltas = [delta async for delta in deltas_of(engine, prompt, sampling)]
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason


async def test_a_reply_streams_as_deltas_and_says_why_it_ended(engine: TrtEngine) -> None:
    deltas = [delta async for delta in deltas_of(engine, [64], GREEDY)]
    assert [delta.tokens for delta in deltas] == [1] * 5
    assert all(len(delta.text) == 1 for delta in deltas)
    assert [delta.finish_reason for delta in deltas] == [None] * 4 + ["length"]


@pytest.mark.parametrize("end", [0, 255])
async def test_every_end_token_of_the_generation_config_ends_a_reply(engine: TrtEngine, end: int) -> None:
    deltas = [delta async for delta in deltas_of(engine, [end - 1 & 255], GREEDY)]
    # At once: had one been passed over, the next token would end the reply too.
    assert [delta.tokens for delta in deltas] == [0]
    assert deltas[-1].finish_reason == "stop"


async def test_a_prefix_is_reused_in_whole_blocks_where_blocks_are_kept_at_all(engine: TrtEngine) -> None:
    assert [engine.reusable(tokens) for tokens in (0, 31, 32, 100)] == [0, 0, 32, 96]
    assert TrtEngine(LLAMA, EngineOptions(), tokenizer=LLAMA, backend="engine").reusable(100) == 0


async def test_end_tokens_are_ignored_when_asked(engine: TrtEngine) -> None:
    _, reason = await text_of(engine, [253], replace(GREEDY, ignore_eos=True))
    assert reason == "length"


@pytest.mark.parametrize("how", ["cancel", "error"])
async def test_leaving_a_reply_aborts_the_request_in_the_engine(engine: TrtEngine, stand_in: Any, how: str) -> None:
    def listen(delta: Delta) -> None:
        if how == "error":
            raise LookupError
        reply.cancel()

    llm = stand_in.MADE[-1]
    reply = asyncio.ensure_future(engine.generate([1], Sampling(max_tokens=200), listen))
    with pytest.raises(LookupError if how == "error" else asyncio.CancelledError):
        await reply
    output = llm.requests[-1]
    assert output.aborted()
    await eventually(lambda: not llm.running)
    assert output.outputs[0].finish_reason == "cancelled"
    await asyncio.sleep(0)
    assert (await engine.load()).running == 0


async def test_a_finished_request_is_not_aborted(engine: TrtEngine, stand_in: Any) -> None:
    await text_of(engine, [1], GREEDY)
    assert not stand_in.MADE[-1].requests[-1].aborted()


async def test_the_cache_salt_reaches_the_engine_with_each_request(engine: TrtEngine, stand_in: Any) -> None:
    llm = stand_in.MADE[-1]
    llm.salts.clear()
    await engine.generate([1], GREEDY, lambda delta: None, "alice")
    await engine.warm([1, 2], "bob")
    await engine.generate([1], GREEDY, lambda delta: None)
    assert llm.salts == ["alice", "bob", None]


async def test_no_request_ever_asks_for_logprobs(engine: TrtEngine, stand_in: Any) -> None:
    await text_of(engine, [1], GREEDY)
    await engine.score([1, 2, 3])
    for output in stand_in.MADE[-1].requests:
        assert output._params.logprobs is None
        assert output._params.prompt_logprobs is None


async def test_the_load_counts_what_the_engine_has_not_ended(engine: TrtEngine) -> None:
    streams = [deltas_of(engine, [number], Sampling(max_tokens=200)) for number in range(1, 7)]
    for stream in streams:
        await anext(stream)
    load = await engine.load()
    assert (load.running, load.waiting) == (4, 2)
    assert 0 < load.cache_usage <= 1
    for stream in streams:
        await stream.aclose()


async def test_scores_are_the_models_first_choices_and_no_probabilities(engine: TrtEngine) -> None:
    scores = await engine.score([7, 9, 254, 255, 3])
    assert [score.top_token for score in scores] == [8, 10, 255, 0]
    assert all(score.logprob != score.logprob for score in scores)


async def test_a_prompt_that_is_too_long_is_refused_and_the_engine_goes_on(engine: TrtEngine) -> None:
    with pytest.raises(ValueError, match="prompt length"):
        await text_of(engine, [1] * 2000, GREEDY)
    assert (await text_of(engine, [1], GREEDY))[1] == "length"


class RequestError(RuntimeError):
    """TensorRT-LLM's word for a request that it cannot take."""


@pytest.mark.parametrize("when", ["submitted", "running"])
async def test_a_request_that_tensorrt_llm_refuses_is_no_death(
    engine: TrtEngine, stand_in: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RequestError("the prompt is longer than max_num_tokens")

    with monkeypatch.context() as patch:
        if when == "submitted":
            patch.setattr(stand_in.LLM, "generate_async", refuse)
        else:
            patch.setattr(stand_in.LLM, "token_after", refuse)
        with pytest.raises(ValueError, match="longer than max_num_tokens"):
            await text_of(engine, [1], GREEDY)
    assert (await text_of(engine, [1], GREEDY))[1] == "length"


async def test_an_unknown_error_while_running_is_the_engines_death(
    engine: TrtEngine, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(stand_in.LLM, "token_after", fail)
    with pytest.raises(EngineDeadError, match="illegal memory access"):
        await text_of(engine, [1], GREEDY)


async def test_a_worker_that_dies_ends_every_reply_with_an_error(engine: TrtEngine, stand_in: Any) -> None:
    streams = [deltas_of(engine, [1], Sampling(max_tokens=200)) for _ in range(3)]
    for stream in streams:
        await anext(stream)
    stand_in.MADE[-1].die()
    for stream in streams:
        with pytest.raises(EngineDeadError, match="worker died"):
            await asyncio.wait_for(drain(stream), 3)
    with pytest.raises(EngineDeadError):
        await engine.health()


async def drain(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_shutting_down_twice_is_safe_and_ends_what_runs(engine: TrtEngine, stand_in: Any) -> None:
    stream = deltas_of(engine, [1], Sampling(max_tokens=200))
    await anext(stream)
    await engine.shutdown()
    await engine.shutdown()
    assert stand_in.MADE[-1].closed
    with pytest.raises(EngineDeadError):
        await drain(stream)
    with pytest.raises(EngineDeadError, match=r"shut down|not running"):
        await text_of(engine, [1], GREEDY)


async def test_caches_cannot_be_dropped_on_request(engine: TrtEngine) -> None:
    assert await engine.reset_caches() is False


async def test_the_pytorch_backend_loads_hugging_face_folders(folder: Path, stand_in: Any) -> None:
    options = EngineOptions(max_num_seqs=8, max_model_len=1024, kv_cache_dtype="fp8", kv_free_fraction=0.5)
    engine = TrtEngine(folder, options, tokenizer=folder, backend="pytorch")
    await engine.start()
    arguments = stand_in.MADE[-1].arguments
    assert type(stand_in.MADE[-1]).__name__ == "TorchLLM"
    assert (arguments["max_seq_len"], arguments["max_batch_size"], arguments["max_num_tokens"]) == (1024, 8, 8192)
    cache = arguments["kv_cache_config"]
    assert (cache.dtype, cache.free_gpu_memory_fraction, cache.enable_block_reuse) == ("fp8", 0.5, True)
    await engine.shutdown()


async def test_a_step_of_the_pytorch_backend_holds_the_longest_prompt(folder: Path, stand_in: Any) -> None:
    engine = TrtEngine(folder, EngineOptions(max_model_len=20_000), tokenizer=folder, backend="pytorch")
    await engine.start()
    assert stand_in.MADE[-1].arguments["max_num_tokens"] == 20_000
    await engine.shutdown()


async def test_limits_come_from_the_engine_and_are_passed(engine: TrtEngine, stand_in: Any) -> None:
    arguments = stand_in.MADE[-1].arguments
    assert {name: arguments[name] for name in ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")} == {
        "max_batch_size": 4,
        "max_input_len": 1000,
        "max_seq_len": 1150,
        "max_num_tokens": 8192,
    }
    assert arguments["kv_cache_config"].dtype == "auto"


async def test_an_engine_for_two_gpus_is_loaded_for_two(folder: Path, stand_in: Any) -> None:
    options = EngineOptions(tensor_parallel_size=2)
    engine = TrtEngine(GOLDEN / "mistral-fp8-tp2", options, tokenizer=folder, backend="engine")
    await engine.start()
    assert stand_in.MADE[-1].arguments["tensor_parallel_size"] == 2
    await engine.shutdown()


async def test_openmpi_may_start_the_worker_as_root_and_beside_others_unless_told_otherwise(
    folder: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.delenv(name, raising=False)
    beside = "OMPI_MCA_rmaps_base_oversubscribe"
    monkeypatch.setenv(beside, "0")
    engine = TrtEngine(LLAMA, EngineOptions(), tokenizer=folder, backend="engine")
    await engine.start()
    assert os.environ["OMPI_ALLOW_RUN_AS_ROOT"] == os.environ["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    assert (os.environ[beside], ENVIRONMENT[beside]) == ("0", "1")
    await engine.shutdown()


@pytest.mark.parametrize("file", ["runtime/__main__.py", "pipeline/__main__.py", "pipeline/quantize/trt.py"])
def test_the_main_module_does_nothing_when_an_mpi_worker_runs_it_again(file: str) -> None:
    runpy.run_path(str(Path(__file__).parents[4] / file), run_name="__worker__")


@pytest.mark.parametrize(("fraction", "reuse"), [(None, True), (0.4, False)])
async def test_the_kv_caches_variables_reach_it(
    folder: Path, stand_in: Any, fraction: float | None, reuse: bool
) -> None:
    options = EngineOptions(gpu_fraction=0.7, kv_free_fraction=fraction, kv_block_reuse=reuse)
    engine = TrtEngine(LLAMA, options, tokenizer=folder, backend="engine")
    await engine.start()
    cache = stand_in.MADE[-1].arguments["kv_cache_config"]
    assert cache.free_gpu_memory_fraction == (fraction or 0.7)
    assert cache.enable_block_reuse is reuse
    await engine.shutdown()


async def test_an_engine_that_cannot_reuse_blocks_is_not_asked_to(folder: Path, stand_in: Any, tmp_path: Path) -> None:
    other = Path(shutil.copytree(LLAMA, tmp_path / "engine"))
    config = json.loads((other / "config.json").read_bytes())
    config["build_config"]["plugin_config"]["use_paged_context_fmha"] = False
    (other / "config.json").write_text(json.dumps(config))
    engine = TrtEngine(other, EngineOptions(kv_block_reuse=True), tokenizer=folder, backend="engine")
    await engine.start()
    assert stand_in.MADE[-1].arguments["kv_cache_config"].enable_block_reuse is False
    await engine.shutdown()


@pytest.mark.parametrize(
    ("options", "error", "line"),
    [
        (EngineOptions(max_num_seqs=17), ArtifactError, r"at most 16 \(compiled into the engine\), found 17"),
        (EngineOptions(tensor_parallel_size=2), ArtifactError, "TENSOR_PARALLEL_SIZE 1"),
        (EngineOptions(kv_cache_dtype="fp8"), EngineOptionError, "KV_DTYPE: expected auto"),
    ],
)
async def test_what_the_engine_was_not_compiled_for_is_refused_before_loading(
    folder: Path, stand_in: Any, options: EngineOptions, error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line) as refusal:
        await TrtEngine(LLAMA, options, tokenizer=folder, backend="engine").start()
    assert "\n" not in str(refusal.value)
    assert not stand_in.MADE


async def test_an_engine_of_another_version_is_refused_before_loading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(H200, packages=H200.packages | {"tensorrt-llm": "1.2.0"})
    with installed(monkeypatch, here) as stand_in:
        with pytest.raises(ArtifactError, match=r"expected tensorrt-llm 1\.2\.1 .*found 1\.2\.0; use the matching"):
            await TrtEngine(LLAMA, EngineOptions(), tokenizer=folder, backend="engine").start()
        assert not stand_in.MADE


async def test_a_gpu_that_cannot_be_used_is_diagnosed_before_loading(
    folder: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "runtime.host.cuda.probe", lambda: Failure("cuInit", 999, "CUDA_ERROR_UNKNOWN", "unknown error")
    )
    with pytest.raises(CudaError, match="CUDA_ERROR_UNKNOWN"):
        await TrtEngine(LLAMA, EngineOptions(), tokenizer=folder, backend="engine").start()
    assert not stand_in.MADE


def test_an_unknown_type_of_the_cache_is_refused(folder: Path) -> None:
    with pytest.raises(EngineOptionError, match="KV_DTYPE: expected one of auto, fp8, nvfp4, found 'int3'"):
        llm_arguments(folder, EngineOptions(kv_cache_dtype="int3"), tokenizer=folder, backend="pytorch")


SPECIAL = SpecialTokens(0, 0, (255,))
TOKENS = {"added_tokens": [{"id": 1, "content": "<s>"}, {"id": 2, "content": "</s>"}]}


def test_the_prompts_stop_tokens_come_beside_the_models() -> None:
    told = sampling_arguments(Sampling(stop_token_ids=(7, 255, 0)), SPECIAL)
    assert (told["end_id"], told["stop_token_ids"], told["skip_special_tokens"]) == (0, [255, 7], True)
    assert sampling_arguments(Sampling(stop_token_ids=(7,), ignore_eos=True), SPECIAL)["stop_token_ids"] is None
    assert sampling_arguments(Sampling(show_special_tokens=True), SPECIAL)["skip_special_tokens"] is False


def test_all_tokens_are_top_k_zero_and_the_most_probable_one_is_top_k_one() -> None:
    assert sampling_arguments(Sampling(top_k=0), SPECIAL)["top_k"] == 0
    greedy = sampling_arguments(Sampling(temperature=0.0, top_p=0.7, top_k=30, min_p=0.1), SPECIAL)
    assert (greedy["top_k"], greedy["temperature"], greedy["top_p"], greedy["min_p"]) == (1, 1.0, 1.0, 0.0)


def test_a_seed_is_drawn_unless_one_is_given() -> None:
    assert sampling_arguments(Sampling(seed=7), SPECIAL)["seed"] == 7
    drawn = {sampling_arguments(Sampling(), SPECIAL)["seed"] for _ in range(8)}
    assert len(drawn) == 8


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"generation_config.json": {"eos_token_id": [5, 6], "pad_token_id": 1}}, SpecialTokens(5, 1, (6,))),
        ({"generation_config.json": {"eos_token_id": 5}}, SpecialTokens(5, 5, ())),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": 9}}, SpecialTokens(9, 9, ())),
        ({"generation_config.json": {"eos_token_id": 5, "pad_token_id": -1}}, SpecialTokens(5, 5, ())),
        ({"generation_config.json": {"eos_token_id": 5, "pad_token_id": True}}, SpecialTokens(5, 5, ())),
        ({"tokenizer_config.json": {"eos_token": "</s>"}, "tokenizer.json": TOKENS}, SpecialTokens(2, 2, ())),
        (
            {"tokenizer_config.json": {"eos_token": {"content": "</s>"}}, "tokenizer.json": TOKENS},
            SpecialTokens(2, 2, ()),
        ),
    ],
)
def test_the_ends_of_a_reply_are_the_models_own(tmp_path: Path, files: dict[str, Any], found: SpecialTokens) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert SpecialTokens.read(tmp_path) == found


@pytest.mark.parametrize("named", ["2", "</s>", ["2"], [2, None], [[2]], 2.0, True, -1, [2, -1], {}, {"id": 2}])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_an_end_that_is_no_token_is_refused(tmp_path: Path, name: str, named: Any) -> None:
    (tmp_path / name).write_text(json.dumps({"eos_token_id": named}))
    with pytest.raises(ArtifactError, match=rf"{name}: expected a token's number, or a list of them, as eos_token_id"):
        SpecialTokens.read(tmp_path)


def test_a_model_that_never_ends_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"eos_token_id in generation_config\.json or config\.json"):
        SpecialTokens.read(tmp_path)


async def test_the_watch_outlives_a_worker_that_could_not_be_asked(
    engine: TrtEngine, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, calls = stand_in.MADE[-1], 0

    def check() -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("odd")
        return calls == 2

    monkeypatch.setattr(llm, "_check_health", check)
    await eventually(lambda: engine._dead is not None)
    assert calls >= 3
