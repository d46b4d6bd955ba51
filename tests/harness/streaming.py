"""Replies as streams, for tests that stop in the middle of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from runtime.engines import Delta, Engine, Sampling


async def deltas(engine: Engine, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
    """Yield an engine's deltas one after the other; closing the generator cancels the reply, and waits for that."""
    queue: asyncio.Queue[Delta] = asyncio.Queue()
    reply = asyncio.ensure_future(engine.generate(prompt, sampling, queue.put_nowait))
    try:
        while not reply.done() or not queue.empty():
            getter = asyncio.ensure_future(queue.get())
            try:
                await asyncio.wait((getter, reply), return_when=asyncio.FIRST_COMPLETED)
                if getter.done():
                    yield getter.result()
            finally:
                getter.cancel()
        await reply
    finally:
        reply.cancel()
        await asyncio.wait((reply,))
