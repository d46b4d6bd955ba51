"""What the tests of stages share: a plan that is ready, and stages whose work is not done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import pipeline.plan.hardware
from pipeline.plan import BuildRequest
from pipeline.plan.prepare import Prepared, prepare
from pipeline.stages.stage import StageResult, key_of
from runtime.artifact import hashes
from tests.harness.builds import standins
from tests.harness.builds.progress import RecordedProgress

RESULTS: dict[str, dict[str, Any]] = {
    "source": {},
    "tool": {"accuracy": 0.97, "threshold": 0.66},
    "calibration": {"dataset": "embedded", "digest": "d", "samples": 1, "sequence_length": 64, "tokens": 3},
    "quantize": {"method": "awq", "scheme": "W4A16", "group_size": 128, "symmetric": True},
    "tune": {
        "goal": "latency",
        "key": {
            "engine": "vllm 1",
            "torch": None,
            "driver": None,
            "gpu": None,
            "gpu_memory_bytes": None,
            "tensor_parallel_size": 1,
        },
        "choices": {"cudagraph_mode": "FULL"},
        "noise": 0.01,
        "candidates": [],
    },
    "build": {"compile_cache": None, "engine_path": None},
    "reference": {},
    "validate": {
        "gates": [{"name": "known_prompts", "value": 1.0}],
        "validated_at": "2026-01-01T00:00:00+00:00",
        "digest": "0" * 64,
    },
}


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """A plan with every stage but tuning; no work is done for it."""
    for name in ("INFERENCE_ENGINE", "QUANTIZATION", "AWQ_CALIB_DATASET", "TRT_BACKEND", "TOOL_UTTERANCES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pipeline.plan.hardware, "describe", standins.describe)
    asked = BuildRequest(chat="embedded", tool="embedded", lanes=("cpu",), method="awq", out=tmp_path / "out")
    return prepare(asked, tmp_path / "cache")


@pytest.fixture
def silent() -> RecordedProgress:
    """A progress that nobody sees."""
    return RecordedProgress()


@pytest.fixture
def stage_names() -> set[str]:
    """All stages that a run can have."""
    return set(RESULTS)


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., StageResult]:
    """Make the result of a stage whose work is not done; `output` stands in its files, `told` in what it tells."""

    def of(
        name: str, inputs: Mapping[str, Any], output: str = "{}", told: Mapping[str, Any] | None = None
    ) -> StageResult:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}-{name}"
        out.mkdir()
        for file in ("config.json", "tokenizer.json", "scores.json"):
            (out / file).write_text(output)
        written = {entry.path: entry.sha256 for entry in hashes.hash_folder(out)}
        return StageResult(name, key_of(name, inputs), out, {**RESULTS[name], **(told or {})}, 1.0, False, written)

    return of
