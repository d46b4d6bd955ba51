"""The frameworks' tests run in an environment of their own, where test_own_environment.py starts them.

Where no framework is installed, as in the server's environment, that one alone is collected.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.frameworks.scripted_process import ScriptedProcess

ROOT = Path(__file__).parents[2]
NEEDS = {
    "test_livekit.py": "livekit",
    "test_livekit_openai.py": "livekit",
    "test_pipecat.py": "pipecat",
    "test_pipecat_openai.py": "pipecat",
}
collect_ignore = [name for name, module in NEEDS.items() if importlib.util.find_spec(module) is None]
if not collect_ignore:
    collect_ignore = ["test_own_environment.py"]


if "test_pipecat.py" not in collect_ignore:
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedProcess]:
    """A scripted server in a process of its own."""
    with ScriptedProcess(os.environ.get("YAP_SERVER_PYTHON", str(ROOT / ".venv/bin/python"))) as server:
        yield server


@pytest.fixture(autouse=True)
def _asked(request: pytest.FixtureRequest) -> None:
    """Let each test be told of its own requests alone."""
    if "scripted" in request.fixturenames:
        request.getfixturevalue("scripted").state()
