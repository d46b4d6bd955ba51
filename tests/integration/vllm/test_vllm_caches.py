"""What vLLM compiled at one place is found at another, by vLLM itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.engines.vllm.caches import PLACEHOLDER_FOLDER, copy_caches, relocate

pytestmark = [
    pytest.mark.engine,
    # On a CPU vLLM's compiler makes C++ of a graph; on a GPU, and in our images, none is needed.
    pytest.mark.skipif(shutil.which("g++") is None, reason="compiling a graph for a CPU needs g++"),
]

# Graphs in files of their own, as vLLM keeps them beside the torch versions that cannot put all into one.
SETTINGS = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_USE_AOT_COMPILE": "1",
    "VLLM_USE_MEGA_AOT_ARTIFACT": "0",
}

ANSWER = 32.0 + sum(range(32))


def compile_one(cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.harness.compile_one"]
    environment = os.environ | SETTINGS | {"VLLM_CACHE_ROOT": str(cache)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def answered(cache: Path) -> tuple[int, int, float]:
    """How many graphs and whole models were found compiled, and the model's answer."""
    done = compile_one(cache)
    assert done.returncode == 0, done.stderr[-3000:]
    graphs, models, answer = done.stdout.split()[-3:]
    return int(graphs), int(models), float(answer)


def test_a_model_compiled_elsewhere_is_loaded_where_its_cache_was_copied_to(tmp_path: Path) -> None:
    """Whole, as vLLM keeps it from torch 2.10 on: it is not even traced again."""
    built, artifact, served = (tmp_path / name for name in ("built", "artifact", "served"))
    assert answered(built) == (0, 0, ANSWER)
    relocate(built, PLACEHOLDER_FOLDER)
    built.rename(artifact)
    copy_caches(artifact, served)
    assert answered(served) == (1, 1, ANSWER)
    # Moved without that, the engine does not start: the reason for all this.
    plain = tmp_path / "plain"
    shutil.copytree(artifact, plain)
    done = compile_one(plain)
    assert done.returncode != 0
    assert str(PLACEHOLDER_FOLDER) in done.stderr
