"""The examples in the client's README."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.frameworks.scripted_process import KEY, ScriptedProcess

CLIENT = Path(__file__).parents[2] / "client"


def run(section: str, scripted: ScriptedProcess) -> str:
    """Run a section's example as a program, and return what it prints."""
    text = (CLIENT / "README.md").read_text(encoding="utf-8").partition(f"\n## {section}\n")[2]
    found = re.search(r"```py\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return subprocess.run(
        [sys.executable, "-c", found[1]],
        env={**os.environ, "PYTHONPATH": str(CLIENT), "YAP_URL": scripted.url, "YAP_KEY": KEY},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
