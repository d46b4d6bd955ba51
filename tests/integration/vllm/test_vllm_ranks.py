"""A model that several processes share, for real: vLLM's own executor for them, on processors in the place of GPUs.

One start for all: the last test takes a rank's life.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runtime.engines import Delta, EngineDeadError, EngineOptionError, EngineOptions, Load, Sampling
from runtime.engines.vllm.contract import seams
from runtime.engines.vllm.engine import VllmEngine
from tests.harness.models import tiny
from tests.harness.server import descendants
from tests.harness.streaming import deltas

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

RANKS = 2
PROMPT = list(range(20, 52))
ENDLESS = Sampling(temperature=0.0, max_tokens=200, ignore_eos=True)
# What a machine that does other work too may need; vLLM's own way takes 9 s on an idle one.
PATIENCE_S = 60.0
OTHERS: set[int] = set()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.wide_llama(tmp_path_factory.mktemp("shared") / "model")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[VllmEngine]:
    options = EngineOptions(
        max_model_len=256, max_num_seqs=4, cpu_kv_cache_gib=0.05, tensor_parallel_size=RANKS, pipeline_parallel_size=1
    )
    engine = VllmEngine(model, options)
    OTHERS.update(descendants(os.getpid()))
    await engine.start()
    yield engine
    await engine.shutdown()


def processes() -> dict[int, str]:
    """The engine's processes: those that were not there before it, for engines of other tests may live on."""
    return {pid: name for pid, name in descendants(os.getpid()).items() if pid not in OTHERS}


def ranks() -> list[int]:
    """Ids of the processes that compute."""
    return [pid for pid, name in processes().items() if name.startswith("VLLM::Worker")]


async def test_ranks_compute_what_one_process_does(engine: VllmEngine, model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    assert len(ranks()) == RANKS
    scores = await engine.score(PROMPT)
    alone = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    with torch.inference_mode():
        logprobs = alone(torch.tensor([PROMPT])).logits[0, :-1].float().log_softmax(-1)
    expected = logprobs[torch.arange(len(PROMPT) - 1), torch.tensor(PROMPT[1:])].tolist()
    assert max(expected) - min(expected) > 1, "a model that is sure of nothing proves nothing"
    assert [score.logprob for score in scores] == pytest.approx(expected, abs=0.5)


async def test_a_reply_comes_and_the_scheduler_s_own_figures_are_known(engine: VllmEngine) -> None:
    heard: list[Delta] = []
    await engine.generate(PROMPT, Sampling(temperature=0.0, max_tokens=8, ignore_eos=True), heard.append)
    assert sum(delta.tokens for delta in heard) == 8
    assert heard[-1].finish_reason == "length"
    # Both would have been given up at the start if what is added to the engine's process were not there.
    assert seams.holds("load")
    assert seams.holds("first token")
    assert seams.holds("end of ranks")
    assert await engine.load() == Load(running=0, waiting=0, cache_usage=0.0)
    longer = PROMPT * 6
    await engine.warm(longer)
    assert await engine.warm(longer) == engine.reusable(len(longer)) > 0


async def test_leaving_early_leaves_the_scheduler_empty(engine: VllmEngine) -> None:
    stream = deltas(engine, PROMPT, ENDLESS)
    await anext(stream)
    assert (await engine.load()).running == 1
    await stream.aclose()
    assert await engine.load() == Load(running=0, waiting=0, cache_usage=0.0)


async def test_every_rank_counts_the_same_into_its_compile_cache_s_key(engine: VllmEngine) -> None:
    assert engine._llm is not None
    keys = await engine._llm.collective_rpc("model_key")
    assert len(keys) == RANKS
    assert len(set(keys)) == 1


@pytest.mark.parametrize("tensor", [3, 8])
async def test_a_number_that_does_not_divide_the_heads_is_refused_in_one_line(model: Path, tensor: int) -> None:
    engine = VllmEngine(model, EngineOptions(max_model_len=256, tensor_parallel_size=tensor))
    with pytest.raises(EngineOptionError) as caught:
        await engine.start()
    assert str(caught.value) == (
        "TENSOR_PARALLEL_SIZE, PIPELINE_PARALLEL_SIZE: expected numbers by which vLLM can share the model, found "
        f"{tensor} and 1; Total number of attention heads (4) must be divisible by tensor parallel size ({tensor})"
    )


async def test_a_rank_s_death_ends_the_turn_the_others_and_the_engine(engine: VllmEngine) -> None:
    before = processes()
    stream = deltas(engine, PROMPT, ENDLESS)
    await anext(stream)
    os.kill(ranks()[-1], signal.SIGKILL)

    async def to_the_end() -> None:
        async for _ in stream:
            pass

    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(to_the_end(), PATIENCE_S)
    with pytest.raises(EngineDeadError):
        await engine.health()
    await engine.shutdown()
    theirs = {pid for pid, name in before.items() if name.startswith("VLLM::")}
    until = time.monotonic() + PATIENCE_S
    while left := theirs & descendants(os.getpid()).keys():  # one that was killed is gone when the system says so
        assert time.monotonic() < until, left
        multiprocessing.active_children()  # takes note of those that have ended
        await asyncio.sleep(0.05)
