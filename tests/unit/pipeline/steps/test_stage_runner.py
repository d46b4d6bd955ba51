"""Stages that compute in this process let their threads sleep while they wait; engines never inherit it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.stage import StageError
from pipeline.steps.stage_runner import COMPUTING_HERE, WAIT_POLICY, StageRunner
from runtime.host.machine import Machine
from tests.harness.builds.progress import RecordedProgress
from tests.harness.builds.standins import PARTS


def run_stage(tmp_path: Path, name: str, *, fails: bool = False) -> str | None:
    """Run one stage and return the policy that its work found."""
    found: list[str | None] = []

    def work(out: Path) -> Mapping[str, Any]:
        found.append(os.environ.get(WAIT_POLICY))
        if fails:
            raise StageError(name, "it was asked to")
        return {}

    runner = StageRunner(tmp_path, Machine(), RecordedProgress())
    if fails:
        with pytest.raises(StageError):
            runner.stage(name, {}, work)
    else:
        runner.stage(name, {}, work)
    return found[0]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_policy_counts_where_this_process_computes_and_nowhere_else(
    name: str, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WAIT_POLICY, raising=False)
    assert run_stage(tmp_path, name, fails=fails) == ("PASSIVE" if name in COMPUTING_HERE else None)
    assert WAIT_POLICY not in os.environ


@pytest.mark.parametrize("name", PARTS)
def test_a_users_own_policy_stays(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT_POLICY, "ACTIVE")
    assert run_stage(tmp_path, name) == "ACTIVE"
    assert os.environ[WAIT_POLICY] == "ACTIVE"


LOADS = """
import sys
from pathlib import Path
from pipeline import cli
from pipeline.steps.stage_runner import StageRunner
from runtime.host.machine import Machine
from tests.harness.builds.progress import RecordedProgress
assert "torch" not in sys.modules, "the command line loads PyTorch before any stage: its policy is read by then"
def work(out):
    import torch
    return {}
StageRunner(Path(sys.argv[1]), Machine(), RecordedProgress()).stage("tool", {}, work)
"""


@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
def test_openmp_itself_reads_the_policy(tmp_path: Path) -> None:
    """OpenMP reads it when it is loaded, and not again: so nothing may load it before the stages."""
    environment = {name: value for name, value in os.environ.items() if name != WAIT_POLICY}
    child = subprocess.run(
        [sys.executable, "-c", LOADS, str(tmp_path)],
        env=environment | {"OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    if "OPENMP DISPLAY ENVIRONMENT" not in child.stderr:
        pytest.skip("this PyTorch's OpenMP does not tell its environment")
    assert f"{WAIT_POLICY} = 'PASSIVE'" in child.stderr
