"""A reply as a stream, for those who want to stop in the middle of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from runtime.engines import Delta, Engine, Sampling


async def deltas(engine: Engine, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
    """What an engine tells its listener, one after the other. Closing it cancels the reply, and waits for that."""
    heard: asyncio.Queue[Delta] = asyncio.Queue()
    reply = asyncio.ensure_future(engine.generate(prompt, sampling, heard.put_nowait))
    try:
        while not reply.done() or not heard.empty():
            hearing = asyncio.ensure_future(heard.get())
            try:
                await asyncio.wait((hearing, reply), return_when=asyncio.FIRST_COMPLETED)
                if hearing.done():
                    yield hearing.result()
            finally:
                hearing.cancel()
        await reply
    finally:
        reply.cancel()
        await asyncio.wait((reply,))
