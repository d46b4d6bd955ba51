"""The server's own process around a scripted engine: `python -m tests.harness.scripted_process`.

It is set by the usual variables. `SCRIPT_REPLY_SECONDS` is the length of a reply, `SCRIPT_DIES_AFTER` the seconds
after which the engine is dead. `SCRIPT_REPLY` is the word that a reply is made of, `{pid}` in it the process.
`SCRIPT_STUCK` makes it hang when it is stopped: `loop` while the loop runs, `thread` when that has ended.
`SCRIPT_TEMPLATE` makes prompts as the runtime does, of a template and a large vocabulary.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.deployment import traces
from runtime.deployment.models import Chat, Renderer
from runtime.deployment.serving import ChatServing, ServingPlan
from runtime.deployment.settings import load
from runtime.engines import Delta, EngineOptions, Sampling
from runtime.server import process as server
from runtime.server.life.heap import freeze_heap
from runtime.server.service import Service
from runtime.text.prompt import Budgets, PromptRenderer
from tests.harness.scripted import ScriptedEngine, ScriptedRenderer
from tests.harness.templates import plain_marks


class Stuck(ScriptedEngine):
    """A scripted engine that hangs when it is stopped."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    async def shutdown(self) -> None:
        """Never end in the event loop, or leave a thread that does not end."""
        if self.where == "thread":
            threading.Thread(target=time.sleep, args=(60,), name="stuck").start()
        elif self.where == "loop":
            await asyncio.sleep(60)


class Forgetful(ScriptedEngine):
    """A scripted engine that keeps nothing of what it was asked, and takes prompts of any vocabulary."""

    numbers = itertools.count()

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        """Send the reply, one delta a word."""
        number = next(self.numbers)
        self.held.add(number)
        try:
            for index, text in enumerate(self.reply):
                await asyncio.sleep(self.pause)
                await self.health()
                last = index == len(self.reply) - 1
                on_delta(Delta(text, 1, "stop" if last else None, cached_tokens=3, token_ids=[index]))
        finally:
            self.held.discard(number)

    async def warm(self, prompt: Sequence[int], cache_salt: str | None = None) -> int:
        """Do nothing."""
        await self.health()
        return 0


def templated() -> Renderer:
    """The runtime's own renderer, of a template with plain marks and a large vocabulary."""
    with tempfile.TemporaryDirectory(prefix="yap-template-") as folder:
        return PromptRenderer(plain_marks.write_large(Path(folder)), Budgets())


async def load_script(service: Service) -> None:
    """Load the scripted engine, in the place of `Service.load`."""
    seconds = float(os.environ.get("SCRIPT_REPLY_SECONDS", "0"))
    large = "SCRIPT_TEMPLATE" in os.environ
    word = os.environ.get("SCRIPT_REPLY", "word").format(pid=os.getpid())
    engine = (Forgetful if large else ScriptedEngine)(reply=[f"{word} "] * 20, pause=seconds / 20)
    renderer = templated() if large else ScriptedRenderer()
    budgets = Budgets()
    chat = Chat(engine, renderer, ThreadPoolExecutor(1), budgets)
    service._loader.engine = Stuck(os.environ.get("SCRIPT_STUCK", ""))
    service.tracer = traces.tracer(model="scripted")
    freeze_heap()  # as the server does when it has loaded
    service.open(chat, None, ServingPlan("chat", ChatServing(budgets, 150, EngineOptions()), None, None))
    if (dies := os.environ.get("SCRIPT_DIES_AFTER")) is not None:

        def die() -> None:
            engine.dead = True

        asyncio.get_running_loop().call_later(float(dies), die)


if __name__ == "__main__":
    Service.load = load_script  # type: ignore[method-assign]
    if "SCRIPT_STUCK" in os.environ:
        server.SHUTDOWN_TIMEOUT_S = 0.5
    raise SystemExit(server.run(load()))
