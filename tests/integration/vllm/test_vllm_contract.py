"""The contract with the vLLM that is installed: all of it, and none of what can be done without."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from runtime.engines import Delta, EngineDeadError, EngineOptions, Sampling
from runtime.engines.vllm import contract
from runtime.engines.vllm.contract import table
from runtime.engines.vllm.engine import VllmEngine
from runtime.engines.vllm.seams import read_need, unmet
from tests.harness.vllm import api

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

GREEDY = Sampling(temperature=0.0, max_tokens=24)
ENDLESS = Sampling(max_tokens=1500, ignore_eos=True)
PROMPT = list(range(100, 180))


# Code of CUDA's is not in a build for a CPU; the recorded sources have it (tests/contracts/test_vllm.py).
HERE = {need for seam in contract.SEAMS for need in (*seam.needs, *seam.met) if not need.startswith(f"{table.CUDA}:")}


@pytest.mark.parametrize("need", sorted(HERE))
async def test_the_installed_vllm_has_what_each_seam_needs(need: str) -> None:
    assert unmet(read_need(need)) is None


async def test_the_installed_vllm_is_as_recorded() -> None:
    import vllm

    assert api.from_tree(Path(vllm.__file__).parents[1]) == api.load()[vllm.__version__]


async def test_int8_products_on_a_cpu_take_a_batch_of_sequences(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel as Kernel

    weight = torch.randn(5, 4)

    def product(kernel: object, layer: object, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        assert x.dim() == 2
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(Kernel, "_apply_weights_sgl", product)
    contract.flatten_rows()
    for shape in ((3, 4), (1, 3, 4), (2, 3, 4)):
        x, bias = torch.randn(shape), torch.randn(5)
        expected = torch.nn.functional.linear(x, weight, bias)
        assert torch.allclose(Kernel._apply_weights_sgl(None, None, x, bias), expected)

    monkeypatch.setattr(contract.seams, "_wrong", {})
    monkeypatch.setattr(contract.seams, "_warned", set())
    monkeypatch.delattr(Kernel, "_apply_weights_sgl")
    contract.flatten_rows()
    assert "rows of INT8" in caplog.text


async def said(engine: VllmEngine) -> list[Delta]:
    deltas: list[Delta] = []
    await engine.generate(PROMPT, GREEDY, deltas.append)
    return deltas


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_an_engine_goes_vllms_own_way_where_it_has_to(
    chat_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = EngineOptions(max_model_len=2048, max_num_seqs=16, cpu_kv_cache_gib=1)
    whole = VllmEngine(chat_folder, options)
    try:
        await whole.start()
        expected = text(await said(whole))
    finally:
        await whole.shutdown()
    assert not [record for record in caplog.records if record.name.startswith("runtime.")]

    broken = [seam.name for seam in contract.SEAMS if not seam.required]
    monkeypatch.setattr(
        contract.seams, "_wrong", {seam.name: None if seam.required else "invented" for seam in contract.SEAMS}
    )
    monkeypatch.setattr(contract.seams, "_warned", set())
    engine = VllmEngine(chat_folder, options)
    try:
        await engine.start()
        warned = [record.getMessage() for record in caplog.records if record.name.startswith("runtime.")]
        assert len(warned) == len(broken)
        assert all(f": {name}: invented" in line for name, line in zip(broken, warned, strict=True))

        assert text(await said(engine)) == expected
        engine.wake()
        with pytest.raises(Exception, match="longer than"):
            await engine.warm(list(range(10, 3000)))

        first = asyncio.Event()
        endless = asyncio.create_task(engine.generate(PROMPT, ENDLESS, lambda delta: first.set()))
        await first.wait()
        load = await engine.load()
        assert (load.running, load.waiting) == (1, 0)
        assert math.isnan(load.cache_usage)
        assert not await engine.reset_caches()
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        assert (await engine.load()).running == 0
        assert await engine.reset_caches()

        def fail(delta: Delta) -> None:
            raise LookupError("nobody there")

        with pytest.raises(LookupError):
            await engine.generate(PROMPT, ENDLESS, fail)
        assert await engine.reset_caches()
        assert len(await engine.score(PROMPT)) == len(PROMPT) - 1
    finally:
        await engine.shutdown()
    with pytest.raises(EngineDeadError):
        await engine.health()
