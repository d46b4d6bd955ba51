"""What the integration tests share: one chat model and one running engine a session."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_asyncio

from runtime.engines import EngineOptions


@pytest.fixture(scope="session")
def chat_folder(pytestconfig: pytest.Config) -> Path:
    """The embedded chat model as a Hugging Face folder; kept between runs, because writing it takes half a minute."""
    from pipeline.embedded.chat import export_chat
    from pipeline.progress import PlainProgress

    folder = Path(pytestconfig.cache.mkdir("chat-model"))
    whole = folder / "whole"
    if not whole.exists():
        export_chat(folder, PlainProgress())
        whole.touch()
    return folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(chat_folder: Path):
    """One vLLM engine for the whole session."""
    from runtime.engines.vllm import VllmEngine

    engine = VllmEngine(chat_folder, EngineOptions(max_model_len=2048, max_num_seqs=16, cpu_kv_cache_gib=1))
    await engine.start()
    yield engine
    await engine.shutdown()
