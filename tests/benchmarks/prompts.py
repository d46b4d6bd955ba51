"""A very long history through the artifact's own tokenizer, while the event loop goes on."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks.work import work

HISTORY_BYTES = 250_000


def prompt_section(folder: Path) -> None:
    """Measure the time to render a 250 KB history, and the longest time that the event loop was blocked meanwhile."""
    from runtime.text.prompt import Budgets, Message, PromptRenderer

    print(f"\nprompts: a history of {HISTORY_BYTES // 1000} KB ({folder})")
    renderer = PromptRenderer(folder, Budgets())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        gaps: list[float] = []

        async def tick() -> None:
            while not stop.is_set():
                before = time.perf_counter()
                await asyncio.sleep(0.001)
                gaps.append(time.perf_counter() - before - 0.001)

        with ThreadPoolExecutor(1) as pool:
            for attempt in range(5):
                history: list[Message] = []
                size = 0
                while size < HISTORY_BYTES:
                    seed = 80_000_000 + attempt * 10_000 + len(history)
                    text = work(seed, 60).persona
                    history.append(Message("assistant" if len(history) % 2 else "user", text))
                    size += len(text.encode())
                gaps.clear()
                stop.clear()
                ticker = asyncio.create_task(tick())
                await asyncio.sleep(0.02)
                began = time.perf_counter()
                prompt = await loop.run_in_executor(
                    pool,
                    lambda messages=tuple(history): renderer.render(
                        persona="You are kind.", runtime_text=None, history=messages, utterance="And then?"
                    ),
                )
                elapsed = time.perf_counter() - began
                stop.set()
                await ticker
                print(
                    f"prompts: {len(history)} messages, {size} bytes → {len(prompt.token_ids)} tokens "
                    f"({prompt.history_kept} messages kept) in {elapsed * 1000:.1f} ms; "
                    f"the loop was late by {max(gaps) * 1000:.1f} ms at most",
                    flush=True,
                )

    asyncio.run(main())
