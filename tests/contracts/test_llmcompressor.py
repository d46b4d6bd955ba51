"""What is recorded of llm-compressor, against the release in the quantizer's environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pipeline.lanes.quantizers import RECORDED, WHOLE_EXPERTS

ROOT = Path(__file__).resolve().parents[2]
QUANTIZER = ROOT / ".venv-quantize/bin/python"
# Mixtures whose experts it takes apart, one for each way in which it does.
TAKEN_APART = ("mixtral", "qwen3_moe", "gpt_oss")


def record(*names: str) -> tuple[set[str], set[str], dict[str, str]]:
    """The model types that were looked at, those whose experts stay whole, and the releases."""
    command = [str(QUANTIZER), "-m", "tests.harness.models.whole_experts", *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return set(found["looked_at"]), set(found["whole"]), found["releases"]


needs_quantizer = pytest.mark.skipif(not os.access(QUANTIZER, os.X_OK), reason="no quantizer's environment")


@needs_quantizer
def test_the_experts_that_stay_whole_are_the_recorded_ones() -> None:
    looked_at, whole, releases = record(*sorted(WHOLE_EXPERTS), *TAKEN_APART)
    assert releases == RECORDED, "record it anew: python -m tests.harness.models.whole_experts"
    assert whole == WHOLE_EXPERTS
    assert looked_at == WHOLE_EXPERTS | set(TAKEN_APART)


@needs_quantizer
@pytest.mark.engine
def test_no_other_model_type_has_experts_that_stay_whole() -> None:
    _, whole, _ = record()
    assert whole == WHOLE_EXPERTS
