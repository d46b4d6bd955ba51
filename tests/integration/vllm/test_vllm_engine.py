"""The vLLM engine, for real, on this machine: what the runtime believes about it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.engines import Delta, EngineDeadError, EngineOptionError, EngineOptions, Load, Sampling
from runtime.engines.vllm import exercise
from runtime.engines.vllm.contract import seams
from tests.harness.streaming import deltas

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

GREEDY = Sampling(temperature=0.0, max_tokens=24)
IDLE = Load(running=0, waiting=0, cache_usage=0.0)


@pytest.fixture(scope="session")
def tokenizer(chat_folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(chat_folder)


@pytest.fixture(scope="session")
def ask(tokenizer):
    def render(utterance: str, system: str = "You are a helpful assistant.") -> list[int]:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": utterance}]
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    return render


async def reply(engine, prompt, sampling) -> tuple[str, int, str | None]:
    heard: list[Delta] = []
    await engine.generate(prompt, sampling, heard.append)
    return "".join(delta.text for delta in heard), sum(delta.tokens for delta in heard), heard[-1].finish_reason


def ticks(task: int) -> int:
    """For how long a thread has computed."""
    return int(Path(f"/proc/{task}/task/{task}/stat").read_text().rpartition(")")[2].split()[11])


async def test_on_a_cpu_it_is_forked_and_its_threads_have_a_core_each(engine, ask):
    """Spawned, each of its processes would import vLLM anew. OpenMP reads its variables too early for a forked one."""
    [bound] = await engine._llm.collective_rpc("bound_threads")
    cores = sorted(os.sched_getaffinity(0))
    assert [core for _, core in bound] == cores
    assert all(os.sched_getaffinity(task) == {core} for task, core in bound[1:])
    await reply(engine, ask("What is the capital of France?"), GREEDY)
    for task, _ in bound[1:]:  # and these are the ones that compute
        assert ticks(task) > 0
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in os.environ  # the next engine is asked for as this one was


async def test_an_operator_may_have_it_spawned(chat_folder, monkeypatch):
    from runtime.engines.vllm.engine import VllmEngine

    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    engine = VllmEngine(chat_folder, EngineOptions(max_model_len=512, max_num_seqs=2, cpu_kv_cache_gib=0.25))
    await engine.start()
    try:
        assert await engine._llm.collective_rpc("bound_threads") == [[]]
    finally:
        await engine.shutdown()


async def test_it_answers_and_stops_by_itself(engine, ask):
    text, tokens, reason = await reply(engine, ask("What is the capital of France?"), GREEDY)
    assert "Paris" in text
    assert reason == "stop"
    assert "<|" not in text
    assert 0 < tokens < 24


async def test_it_stops_at_the_limit(engine, ask):
    _, tokens, reason = await reply(engine, ask("Tell me a long story."), Sampling(temperature=0.0, max_tokens=7))
    assert (tokens, reason) == (7, "length")


async def test_deltas_concatenate_to_the_text_of_the_tokens(engine, ask, tokenizer):
    prompt = ask("Write the word 'naïve', an emoji and a Chinese greeting.")
    sampling = Sampling(temperature=0.9, seed=7, max_tokens=60, ignore_eos=True)
    first, count, _ = await reply(engine, prompt, sampling)
    second, _, _ = await reply(engine, prompt, sampling)
    assert first == second
    assert count == 60
    assert len(tokenizer(first, add_special_tokens=False)["input_ids"]) > 10


@pytest.mark.parametrize("deltas_before_closing", [0, 1, 5])
async def test_stopping_in_the_middle_leaves_the_scheduler_empty(engine, ask, deltas_before_closing):
    endless = Sampling(max_tokens=1500, ignore_eos=True)
    stream = deltas(engine, ask("Count."), endless)
    for _ in range(deltas_before_closing):
        await anext(stream)
    if deltas_before_closing:
        assert (await engine.load()).running == 1
    await stream.aclose()
    assert await engine.load() == IDLE


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.005, 0.3])
async def test_cancelling_leaves_the_scheduler_empty(engine, ask, delay):
    async def consume() -> None:
        await engine.generate(ask("Count."), Sampling(max_tokens=1500, ignore_eos=True), lambda delta: None)

    tasks = [asyncio.create_task(consume()) for _ in range(4)]
    await asyncio.sleep(delay)
    for task in tasks:
        task.cancel()
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*tasks, return_exceptions=True))
    assert await engine.load() == IDLE


async def test_a_listener_that_fails_ends_its_own_reply_and_no_other(engine, ask):
    def fail(delta: Delta) -> None:
        raise LookupError("nobody there")

    other = asyncio.create_task(reply(engine, ask("What is 2 plus 2?"), Sampling(temperature=0.0, max_tokens=30)))
    with pytest.raises(LookupError, match="nobody there"):
        await engine.generate(ask("Count."), Sampling(max_tokens=1500, ignore_eos=True), fail)
    assert (await other)[1] > 0
    assert await engine.load() == IDLE


async def test_eight_at_once_share_the_batch(engine, ask):
    prompts = [ask(f"What is {n} plus {n}?") for n in range(8)]
    tasks = [
        asyncio.create_task(reply(engine, p, Sampling(temperature=0.0, max_tokens=30, ignore_eos=True)))
        for p in prompts
    ]
    most = 0
    while not all(task.done() for task in tasks):
        most = max(most, (await engine.load()).running)
        await asyncio.sleep(0.05)
    assert [(await task)[1] for task in tasks] == [30] * 8
    assert most == 8


async def test_rousing_reaches_a_silent_engine_alone_and_changes_no_reply(engine, ask, monkeypatch):
    core, reached = engine._llm.engine_core, []
    send = core.abort_requests_async

    async def spied(request_ids: list[str]) -> None:
        reached.append(request_ids)
        await send(request_ids)

    prompt = ask("What is the capital of France?")
    expected = await reply(engine, prompt, GREEDY)
    monkeypatch.setattr(core, "abort_requests_async", spied)
    for _ in range(3):
        engine.wake()
        assert await reply(engine, prompt, GREEDY) == expected
    assert len(reached) == 3

    running = asyncio.create_task(reply(engine, prompt, GREEDY))
    while not (await engine.load()).running:
        pass
    engine.wake()
    assert await running == expected
    assert len(reached) == 3
    assert await engine.load() == IDLE


async def test_warming_a_prefix_makes_the_next_prompt_hit(engine, ask):
    system = "You are Ada, a patient teacher of arithmetic. " * 20
    assert await engine.reset_caches()
    prompt = ask("Who are you?", system)
    assert await engine.warm(prompt[:-20]) == 0
    async with aclosing(deltas(engine, prompt, GREEDY)) as stream:
        first = await anext(stream)
    assert len(prompt) - 20 - 128 <= first.cached_tokens < len(prompt)
    assert await engine.reset_caches()
    assert await engine.warm(prompt) == 0


async def test_a_prompt_finds_only_what_came_with_its_own_salt(engine, ask):
    async def cached(salt: str | None) -> int:
        heard: list[Delta] = []
        await engine.generate(prompt, replace(GREEDY, max_tokens=1), heard.append, salt)
        return heard[0].cached_tokens

    assert await engine.reset_caches()
    prompt = ask("Who are you?", "The project's code name is Falcon, and it launches in March. " * 20)
    assert [await cached(salt) for salt in ("alice", "bob", None)] == [0, 0, 0]
    assert all([await cached(salt) >= len(prompt) - 128 for salt in ("alice", "bob", None)])
    assert await engine.warm(prompt, "carol") == 0
    assert await cached("carol") >= len(prompt) - 128


async def test_a_worker_computes_the_compile_cache_s_key_without_the_model_s_place(engine, chat_folder, tmp_path):
    import runtime.engines.vllm.worker  # noqa: F401 - what a worker imports
    from runtime.engines.vllm.arguments import engine_arguments

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(chat_folder, elsewhere, ignore=shutil.ignore_patterns("*.safetensors"))
    config = engine_arguments(elsewhere, engine._options).create_engine_config()
    assert await engine._llm.collective_rpc("model_key") == [config.model_config.compute_hash()]


async def test_where_no_graph_was_left_for_later_none_is_captured(engine, monkeypatch):
    """As on a CPU: the first step that is asked for in silence is the last."""
    asked = []
    ask = engine._llm.collective_rpc

    async def noted(method):
        asked.append(method)
        return await ask(method)

    monkeypatch.setattr(engine._llm, "collective_rpc", noted)
    monkeypatch.setattr(exercise, "SILENCE_S", 0.2)
    await engine._capture_the_rest(engine._llm)
    assert asked == ["next_graph"]
    assert seams.holds("later graphs")


async def test_the_cache_is_not_reset_under_a_running_request(engine, ask):
    stream = deltas(engine, ask("Count."), Sampling(max_tokens=1500, ignore_eos=True))
    await anext(stream)
    assert not await engine.reset_caches()
    await stream.aclose()


async def test_scores_are_those_of_the_model(engine, chat_folder, tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    tokens = tokenizer("The capital of France is Paris, and the capital of Italy is Rome.")["input_ids"]
    scores = await engine.score(tokens)
    model = AutoModelForCausalLM.from_pretrained(chat_folder, dtype=torch.bfloat16)
    with torch.inference_mode():
        logprobs = model(torch.tensor([tokens])).logits[0, :-1].float().log_softmax(-1)
    expected = logprobs[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])].tolist()
    assert len(scores) == len(tokens) - 1
    assert [score.logprob for score in scores] == pytest.approx(expected, abs=0.5)
    agreement = [score.top_token == top for score, top in zip(scores, logprobs.argmax(-1).tolist(), strict=True)]
    assert sum(agreement) >= len(agreement) - 1


async def test_a_prompt_longer_than_the_context_is_refused_and_harms_nothing(engine, ask):
    with pytest.raises(ValueError):
        await engine.warm(list(range(10, 3000)))
    assert await engine.load() == IDLE
    await engine.health()


async def test_every_option_reaches_vllm(chat_folder):
    from runtime.engines.vllm.arguments import engine_arguments

    options = EngineOptions(
        gpu_fraction=0.55,
        max_num_seqs=3,
        max_num_batched_tokens=777,
        max_model_len=700,
        tensor_parallel_size=2,
        pipeline_parallel_size=3,
        kv_cache_dtype="fp8",
        attention_backend="flash_attn",
        enforce_eager=True,
        cpu_kv_cache_gib=0.5,
    )
    arguments = engine_arguments(chat_folder, options)
    assert arguments.gpu_memory_utilization == 0.55
    assert arguments.max_num_seqs == 3
    assert arguments.max_num_batched_tokens == 777
    assert arguments.max_model_len == 700
    assert (arguments.tensor_parallel_size, arguments.pipeline_parallel_size) == (2, 3)
    assert arguments.distributed_executor_backend == "mp"
    assert arguments.kv_cache_dtype == "fp8"
    assert arguments.attention_backend.name == "FLASH_ATTN"
    assert arguments.enforce_eager is True
    assert arguments.kv_cache_memory_bytes == 2**29
    alone = engine_arguments(chat_folder, EngineOptions(enforce_eager=False))
    assert alone.enforce_eager is False
    assert alone.distributed_executor_backend is None


@pytest.mark.parametrize("options", [EngineOptions(kv_cache_dtype="fp3"), EngineOptions(attention_backend="MAGIC")])
async def test_an_option_that_vllm_does_not_know_is_refused_with_the_known_ones(chat_folder, options):
    from runtime.engines.vllm.arguments import engine_arguments

    with pytest.raises(EngineOptionError, match="expected one of "):
        engine_arguments(chat_folder, options)


def engine_processes() -> list[int]:
    """Ids of this process's children that run vLLM's engine loop."""
    listing = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="], check=True, capture_output=True, text=True
    ).stdout
    rows = [line.split(maxsplit=1) for line in listing.splitlines()]
    return [int(pid) for pid, args in rows if "EngineCore" in args]


async def test_the_death_of_the_engine_process_ends_everything_within_five_seconds(engine, ask):
    stream = deltas(engine, ask("Count."), Sampling(max_tokens=1500, ignore_eos=True))
    await anext(stream)
    (process,) = engine_processes()
    killed = time.monotonic()
    os.kill(process, signal.SIGKILL)
    with pytest.raises(EngineDeadError):
        async for _ in stream:
            pass
    for question in (engine.health, engine.load, engine.reset_caches, lambda: engine.warm([1, 2, 3])):
        with pytest.raises(EngineDeadError):
            await question()
    engine.wake()  # says nothing
    assert time.monotonic() - killed < 5
    await engine.shutdown()
    await engine.shutdown()


async def test_the_phases_of_its_start_are_told_by_both_processes_in_order(engine):
    told = [phase for _, phase in sorted(engine.start_marks())]
    assert told == ["spawn", "weights", "profile", "cache", "graphs", "connect", "exercise"]
    first, last = min(engine.start_marks())[0], max(engine.start_marks())[0]
    assert 0 < last - first < time.monotonic() - first


async def test_its_own_metrics_are_kept_on_request_alone(engine, chat_folder):
    from runtime.engines.vllm.engine import VllmEngine

    assert list(engine.own_metrics()) == []
    options = EngineOptions(max_num_seqs=2, max_model_len=256, cpu_kv_cache_gib=0.2, own_metrics=True)
    telling = VllmEngine(chat_folder, options)
    await telling.start()
    try:
        await reply(telling, [1, 2, 3], Sampling(temperature=0.0, max_tokens=5, ignore_eos=True))
        samples = [sample for family in telling.own_metrics() for sample in family.samples]
        figures = {sample.name: sample.value for sample in samples}
        assert figures["vllm:generation_tokens_total"] >= 5
        assert figures["vllm:request_success_total"] >= 0
        assert "vllm:kv_cache_usage_perc" in figures
        assert "vllm:time_to_first_token_seconds_count" in figures
    finally:
        await telling.shutdown()
