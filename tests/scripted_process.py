"""The server's own process around a scripted engine: `python -m tests.scripted_process`, set by the usual variables.

`SCRIPT_REPLY_SECONDS` is the length of a reply, `SCRIPT_DIES_AFTER` the seconds after which the engine is dead.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from runtime import server
from runtime.deployment import Chat
from runtime.engines import EngineOptions
from runtime.service import Service
from runtime.serving import ChatPlan, ServingPlan
from runtime.settings import load
from tests.scripted import ScriptedEngine, ScriptedRenderer


async def load_script(service: Service) -> None:
    """In the place of `Service.load`."""
    seconds = float(os.environ.get("SCRIPT_REPLY_SECONDS", "0"))
    engine = ScriptedEngine(reply=["word "] * 20, pause=seconds / 20)
    renderer = ScriptedRenderer()
    chat = Chat(engine, renderer, ThreadPoolExecutor(1), renderer.budgets)
    service.open(chat, None, ServingPlan("chat", ChatPlan(renderer.budgets, 150, EngineOptions()), None, None))
    if (dies := os.environ.get("SCRIPT_DIES_AFTER")) is not None:

        def die() -> None:
            engine.dead = True

        asyncio.get_running_loop().call_later(float(dies), die)


if __name__ == "__main__":
    Service.load = load_script  # type: ignore[method-assign]
    raise SystemExit(server.run(load()))
