"""The clients that the protocol page prints, run as printed."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.scripted import KEY, ScriptedClassifier, serving

PAGE = (Path(__file__).parents[3] / "docs/protocol.md").read_text("utf-8")
SOURCES = dict(re.findall(r"^```(js|python)\n(.*?)^```$", PAGE, re.M | re.S))


def command(language: str, folder: Path) -> list[str]:
    """Write the page's client to a file, and return what runs it."""
    if language == "python":
        (folder / "client.py").write_text(SOURCES[language], "utf-8")
        return [sys.executable, "client.py"]
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    (folder / "client.mjs").write_text(SOURCES[language], "utf-8")
    version = int(subprocess.check_output([node, "--version"], text=True).lstrip("v").partition(".")[0])
    if version < 20:
        pytest.skip(f"node {version} has no WebSocket")
    return [node, "client.mjs"] if version >= 22 else [node, "--experimental-websocket", "client.mjs"]


async def run(words: list[str], url: str, folder: Path) -> tuple[int, str, str]:
    """Run a client to its end."""
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=folder,
        env={"YAP_URL": url, "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), error.decode()


@pytest.mark.parametrize("language", ["js", "python"])
async def test_they_converse(language: str, tmp_path: Path) -> None:
    words = command(language, tmp_path)
    async with serving(classifier=ScriptedClassifier()) as running:
        answer = await run([*words, KEY, "hello there"], running.url, tmp_path)
        assert answer == (0, "Sure thing, here it is.\n", "")
        answer = await run([*words, KEY, "look at this"], running.url, tmp_path)
        assert answer == (0, "Sure thing, here it is.\n" * 2, "")
        assert "a photo of a cat on a sofa" in " ".join(running.engine.prompts[-1])
        _, out, error = await run([*words, "wrong", "hello"], running.url, tmp_path)
        assert out == ""
        assert "authentication_failed" in error


@pytest.mark.parametrize("language", ["js", "python"])
def test_they_are_short(language: str) -> None:
    assert len([line for line in SOURCES[language].splitlines() if line.strip()]) <= 30
