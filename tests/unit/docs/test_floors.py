"""The floors are held: import-linter, with our contracts, refuses each import that runs up or sideways."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.source.house import HOUSES, ROOT

# What is added to a module, and what the linter must say of it.
FORBIDDEN = {
    ("runtime/host/machine.py", "from runtime.artifact import hashes"): "runtime.host -> runtime.artifact",
    (
        "runtime/text/sanitizer/sanitize.py",
        "def late():\n    from runtime.turns import turn",
    ): "runtime.text -> runtime.turns",
    ("runtime/wire/fields.py", "from runtime.host import eager_tasks"): "runtime.wire -> asyncio",
    ("runtime/wire/decoder.py", "import socket"): "runtime.wire -> socket",
    ("runtime/turns/turn.py", "import starlette"): "runtime.turns -> starlette",
    ("runtime/turns/sessions/session.py", "import websockets"): "runtime.turns -> websockets",
    ("runtime/deployment/models.py", "import vllm"): "runtime.deployment -> vllm",
    ("runtime/engines/vllm/engine.py", "import tensorrt_llm"): "runtime.engines.vllm -> tensorrt_llm",
    ("runtime/engines/trt/engine.py", "from runtime.engines.vllm import seams"): (
        "runtime.engines.trt -> runtime.engines.vllm"
    ),
    ("runtime/server/front/heads.py", "from runtime.server import app"): "runtime.server.front -> runtime.server.app",
    ("runtime/artifact/labels.py", "import pipeline.problem"): "runtime -> pipeline",
    ("runtime/__init__.py", "import runtime.defaults"): "runtime -> runtime.defaults",
    ("pipeline/lanes/lane.py", "from pipeline.plan import planner"): "pipeline.lanes -> pipeline.plan",
    ("pipeline/quantize/worker.py", "from pipeline.build import layout"): "pipeline.quantize -> pipeline.build",
    ("pipeline/build/layout.py", "import tensorrt_llm"): "pipeline -> tensorrt_llm",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the linter says of a copy of the house with every forbidden import in it."""
    copy = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for house in HOUSES:
        shutil.copytree(ROOT / house, copy / house, ignore=shutil.ignore_patterns("__pycache__"))
    for path, line in FORBIDDEN:
        with (copy / path).open("a", encoding="utf-8") as module:
            module.write(f"\n\n{line}\n")
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("way", FORBIDDEN.values(), ids=str)
def test_an_import_that_runs_up_or_sideways_is_refused(told: str, way: str) -> None:
    importer, _, imported = way.partition(" -> ")
    assert re.search(rf"^{re.escape(importer)} is not allowed to import {re.escape(imported)}:$", told, re.MULTILINE)
