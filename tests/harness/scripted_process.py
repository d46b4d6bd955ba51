"""The server's own process around a scripted engine: `python -m tests.harness.scripted_process`.

It is set by the usual variables. `SCRIPT_REPLY_SECONDS` is the length of a reply, `SCRIPT_DIES_AFTER` the seconds
after which the engine is dead. `SCRIPT_STUCK` makes it hang when it is stopped: `loop` while the loop runs, `thread`
when that has ended.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from runtime.deployment.models import Chat
from runtime.deployment.serving import ChatServing, ServingPlan
from runtime.deployment.settings import load
from runtime.engines import EngineOptions
from runtime.server import process as server
from runtime.server.service import Service, freeze_heap
from tests.harness.scripted import ScriptedEngine, ScriptedRenderer


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


async def load_script(service: Service) -> None:
    """Load the scripted engine, in the place of `Service.load`."""
    seconds = float(os.environ.get("SCRIPT_REPLY_SECONDS", "0"))
    engine = ScriptedEngine(reply=["word "] * 20, pause=seconds / 20)
    renderer = ScriptedRenderer()
    chat = Chat(engine, renderer, ThreadPoolExecutor(1), renderer.budgets)
    service._engine = Stuck(os.environ.get("SCRIPT_STUCK", ""))
    freeze_heap()  # as the server does when it has loaded
    service.open(chat, None, ServingPlan("chat", ChatServing(renderer.budgets, 150, EngineOptions()), None, None))
    if (dies := os.environ.get("SCRIPT_DIES_AFTER")) is not None:

        def die() -> None:
            engine.dead = True

        asyncio.get_running_loop().call_later(float(dies), die)


if __name__ == "__main__":
    Service.load = load_script  # type: ignore[method-assign]
    if "SCRIPT_STUCK" in os.environ:
        server.SHUTDOWN_TIMEOUT_S = 0.5
    raise SystemExit(server.run(load()))
