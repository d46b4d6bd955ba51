"""Starts the tests of this folder in the frameworks' environment, those of each framework in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = ROOT / ".venv-frameworks/bin/python"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("framework", ["livekit", "pipecat"])
def test_it_holds_inside(framework: str) -> None:
    if not PYTHON.exists():
        pytest.skip("the frameworks are not installed: images/install.sh .venv-frameworks frameworks")
    if not list(PYTHON.parents[1].glob(f"lib/python*/site-packages/{framework}")):
        pytest.skip(f"{framework} has no version for this Python")
    found = subprocess.run(
        [PYTHON, "-m", "pytest", "-c", HERE / "pytest.ini", "-q", *sorted(HERE.glob(f"test_{framework}*.py"))],
        cwd=ROOT,
        env={**os.environ, "YAP_SERVER_PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]
