"""A client in another language, which was written from `docs/protocol.md` alone, passes its own tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness.scripted import KEY, ScriptedClassifier, ScriptedEngine, serving

TESTS = Path(__file__).resolve().parents[2] / "javascript" / "conversation.mjs"
# Node has had it without the flag since 22, and still takes it.
FLAG = "--experimental-websocket"
TIMEOUT_S = 120


def node() -> str:
    """Node with a `WebSocket`; skips where there is none."""
    found = shutil.which("node")
    probe = [found or "node", FLAG, "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"]
    if found is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no node with WebSocket (20.10 or later) on this machine")
    return found


async def test_a_client_written_from_the_page_passes_its_own_tests() -> None:
    program = node()
    engine = ScriptedEngine(pause=0.01, script=lambda words: [f"{word} " for word in words])
    async with serving(engine, ScriptedClassifier(), ws_max_messages_per_window=0) as running:
        process = await asyncio.create_subprocess_exec(
            *(program, FLAG, "--test-reporter=tap", str(TESTS)),
            env={**os.environ, "YAP_URL": running.url, "YAP_KEY": KEY, "NODE_NO_WARNINGS": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        lines: list[str] = []

        async def read() -> None:
            assert process.stdout is not None
            async for line in process.stdout:
                lines.append(line.decode())
                if "DRAIN" in lines[-1]:
                    running.service.drain()
                if "HASTEN" in lines[-1]:
                    engine.pause = 0

        try:
            await asyncio.wait_for(read(), TIMEOUT_S)
        finally:
            if process.returncode is None and not process.stdout.at_eof():  # type: ignore[union-attr]
                process.kill()
            status = await process.wait()
    assert status == 0, "".join(lines)
