"""The examples of the client's README, run as printed; they print what stands below them."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.deployment.classifier import Decision
from tests.harness.scripted import KEY, REPLY, ScriptedClassifier, ScriptedEngine, serving

CLIENT = Path(__file__).parents[3] / "client"
PAGE = (CLIENT / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```\n\n```\n(.*?)^```$", PAGE, re.M | re.S)


class Looking(ScriptedClassifier):
    """Says yes where somebody says look, in any case."""

    async def decide(self, history: Sequence[str], utterance: str) -> Decision:
        """Return the decision."""
        return await super().decide(history, utterance.lower())


def script(prompt: list[str]) -> Sequence[str]:
    """A long story for who asks for one."""
    return ["Once "] * 500 if prompt[-1] == "story." else REPLY


def test_there_are_three() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize(("source", "printed"), EXAMPLES)
async def test_an_example_prints_what_stands_below_it(source: str, printed: str) -> None:
    async with serving(ScriptedEngine(script=script, pause=0.005), Looking()) as running:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", source),
            cwd=CLIENT,
            env={"YAP_URL": running.url, "YAP_KEY": KEY, "PATH": "/usr/bin:/bin"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, error = await asyncio.wait_for(process.communicate(), 60)
    assert (out.decode(), error.decode(), process.returncode) == (printed, "", 0)
