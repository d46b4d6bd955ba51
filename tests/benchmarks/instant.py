"""The server's own process around an engine that costs nothing: what is left is the gateway.

`python -m tests.benchmarks.instant`, set by the server's variables; `INSTANT_TOKENS` is the length of a reply and
`INSTANT_PAUSE` the seconds between its tokens (0: every stream gets a token in each step of the event loop).
`INSTANT_MODEL` is the folder of a chat model whose tokenizer and template render the prompts; without, nothing does.
`INSTANT_ENGINE=vllm` puts vLLM's own output handling in front of the table, whose steps are told one by one with
`INSTANT_TOGETHER=0`. `INSTANT_WATCH_STORE=1` has `/metrics` tell what the session store costs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.deployment import traces
from runtime.deployment.models import Chat
from runtime.deployment.serving import ChatServing, ServingPlan
from runtime.deployment.settings import load
from runtime.engines import Delta, Engine, EngineOptions, Load, Sampling, TokenScore
from runtime.server import process as server
from runtime.server.life.heap import freeze_heap
from runtime.server.life.loader import TOKENIZER_THREADS
from runtime.server.service import Service
from runtime.text.prompt import Budgets, PromptRenderer
from tests.harness.scripted import ScriptedRenderer
from tests.harness.stores.store_cpu import watch_store

BUDGETS = Budgets()
WORDS = (" the", " sea", " was", " calm", ",", " and", " nobody", " spoke", " of", " it", ".")


Stream = tuple[Iterator[Delta], Callable[[Delta], None]]


class InstantEngine:
    """An engine that replies out of a table; as in a real one, one task has a token for every stream in each step."""

    def __init__(self, tokens: int, pause: float) -> None:
        self._deltas = [Delta(WORDS[index % len(WORDS)], 1, token_ids=(0,)) for index in range(tokens)]
        self._pause = pause
        self._streams: dict[asyncio.Future[None], Stream] = {}
        self._stepping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Do nothing: there is nothing to load."""

    def wake(self) -> None:
        """Do nothing: it never sleeps."""

    async def generate(
        self,
        prompt: Sequence[object],
        sampling: Sampling,
        each: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        """Send one token in each step of the loop, or every `pause` seconds."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # What is asked for less than a whole reply goes on behind the beginning of one.
        told = max(0, len(self._deltas) - sampling.max_tokens)
        self._streams[over] = (iter(self._deltas[told:]), each)
        if self._stepping is None:
            self._stepping = asyncio.get_running_loop().create_task(self._step())
        try:
            await over
        finally:
            self._streams.pop(over, None)

    async def _step(self) -> None:
        while self._streams:
            await asyncio.sleep(self._pause)
            for over, (left, each) in list(self._streams.items()):
                delta = next(left, None)
                if delta is not None:
                    try:
                        each(delta)
                    except Exception as error:
                        del self._streams[over]
                        if not over.done():
                            over.set_exception(error)
                elif not over.done():
                    over.set_result(None)
                    del self._streams[over]
        self._stepping = None

    async def warm(self, prompt: Sequence[object], cache_salt: str | None = None) -> int:
        """Do nothing: there is no cache to fill."""
        return 0

    def reusable(self, tokens: int) -> int:
        """Return 0: there is no cache."""
        return 0

    async def score(self, tokens: Sequence[int]) -> list[TokenScore]:
        """Return no scores: it knows no probabilities."""
        return []

    async def load(self) -> Load:
        """Return the number of open streams."""
        return Load(len(self._streams), 0, 0.0)

    async def reset_caches(self) -> bool:
        """Do nothing: there is no cache to drop."""
        return True

    async def health(self) -> None:
        """Do nothing: it never dies."""

    async def shutdown(self) -> None:
        """Do nothing: there is nothing to stop."""


async def load_instant(service: Service) -> None:
    """Load the instant engine, in the place of `Service.load`."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as the server sets it
    tokens, pause = int(os.environ.get("INSTANT_TOKENS", "150")), float(os.environ.get("INSTANT_PAUSE", "0"))
    model = os.environ.get("INSTANT_MODEL")
    renderer = PromptRenderer(Path(model), BUDGETS) if model else ScriptedRenderer()
    if model and os.environ.get("INSTANT_ENGINE") == "vllm":
        from tests.benchmarks.front import table_engine

        together = os.environ.get("INSTANT_TOGETHER") != "0"
        engine: Engine = table_engine(Path(model), tokens, pause, together=together)
    else:
        engine = InstantEngine(tokens, pause)
    freeze_heap()
    if os.environ.get("INSTANT_WATCH_STORE"):
        watch_store(service.metrics.registry)
    service.tracer = traces.tracer(model="instant")
    chat = Chat(engine, renderer, ThreadPoolExecutor(TOKENIZER_THREADS), BUDGETS)
    service.open(chat, None, ServingPlan("chat", ChatServing(BUDGETS, tokens, EngineOptions()), None, None))


if __name__ == "__main__":
    Service.load = load_instant  # type: ignore[method-assign]
    raise SystemExit(server.run(load()))
