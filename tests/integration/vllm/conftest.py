"""One running vLLM engine a session, which a test may kill."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from runtime.engines import EngineDeadError, EngineOptions
from runtime.engines.vllm import threads
from runtime.engines.vllm.engine import VllmEngine


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_engine(chat_folder: Path) -> AsyncIterator[VllmEngine]:
    """The engine; not started before a test asks for it."""
    engine = VllmEngine(chat_folder, EngineOptions(max_model_len=2048, max_num_seqs=16, cpu_kv_cache_gib=1))
    yield engine
    await engine.shutdown()


@pytest_asyncio.fixture(loop_scope="session")
async def engine(shared_engine: VllmEngine) -> VllmEngine:
    """The engine, running: started for the first test that needs it, and again after one that took its life."""
    try:
        await shared_engine.health()
    except EngineDeadError:
        await shared_engine.shutdown()
        with pytest.MonkeyPatch.context() as patch:
            # What else uses the processor must not decide whether it is forked: a quiet moment is waited for.
            patch.setattr(threads, "quiet", partial(threads.quiet, 120.0))
            await shared_engine.start()
    return shared_engine
