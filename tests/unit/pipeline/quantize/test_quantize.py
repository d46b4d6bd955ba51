"""Quantize jobs, their samples, and the worker that runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.quantize import QuantizeJob, read_samples, worker
from pipeline.quantize.vllm import quantize
from pipeline.stages.stage import StageError
from tests.harness.builds.progress import RecordedProgress


@pytest.fixture
def job(tmp_path: Path) -> QuantizeJob:
    out = tmp_path / "out"
    out.mkdir()
    return QuantizeJob(
        method="finish",
        model=tmp_path / "model",
        out=out,
        group_size=32,
        symmetric=False,
        kept_in_float=("lm_head", "re:.*gate$"),
        samples=None,
        sequence_length=16,
        seed=0,
        device="cpu",
    )


def test_a_job_reads_as_it_was_written(job: QuantizeJob, tmp_path: Path) -> None:
    for one in (job, replace(job, samples=tmp_path / "samples.jsonl", group_size=None)):
        one.write(tmp_path / "job.json")
        assert QuantizeJob.read(tmp_path / "job.json") == one


def test_a_job_with_an_unknown_field_is_refused(job: QuantizeJob, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    job.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bits": 3}))
    with pytest.raises(StageError, match="found bits"):
        QuantizeJob.read(path)


@given(st.lists(st.lists(st.integers(0, 50000), min_size=1), min_size=1), st.integers(1, 64))
@settings(deadline=None)
def test_samples_keep_their_order_and_are_cut(samples: list[list[int]], length: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "samples.jsonl")
        path.write_text("\n".join(map(json.dumps, samples)))
        assert read_samples(path, length) == [sample[:length] for sample in samples]


@pytest.mark.parametrize("line", ['"text"', "[]", "[1.5]", '["a"]', "{}"])
def test_a_sample_that_is_no_list_of_token_ids_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(f"[1, 2]\n{line}\n")
    with pytest.raises(StageError, match="line 2"):
        read_samples(path, 8)


def test_no_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("\n")
    with pytest.raises(StageError, match="found none"):
        read_samples(path, 8)


def test_progress_arrives_though_libraries_print(job: QuantizeJob) -> None:
    told = RecordedProgress()
    worker.run_worker("tests.harness.builds.workers", job, python=None, progress=told)
    assert told.steps == ["working"]
    assert told.fractions == [0.5]
    assert (job.out / "config.json").is_file()


@pytest.mark.parametrize(
    ("device", "policy", "expected"), [("cpu", None, "PASSIVE"), ("cpu", "ACTIVE", "ACTIVE"), ("cuda", None, None)]
)
def test_waiting_threads_leave_the_processor_to_others(
    job: QuantizeJob, monkeypatch: pytest.MonkeyPatch, device: str, policy: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    assert worker._environment(replace(job, device=device)).get("OMP_WAIT_POLICY") == expected


def test_a_failed_worker_tells_its_last_lines(job: QuantizeJob) -> None:
    with pytest.raises(StageError, match=r"exit code 3: .*bar 99% \| the weights are torn") as failure:
        worker.run_worker(
            "tests.harness.builds.workers", replace(job, method="crash"), python=None, progress=RecordedProgress()
        )
    assert "bar 1%" not in str(failure.value)
    assert "\n" not in str(failure.value)


def test_what_a_worker_refuses_is_told_in_its_own_line(job: QuantizeJob) -> None:
    with pytest.raises(StageError) as refused:
        worker.run_worker(
            "tests.harness.builds.workers", replace(job, method="refuse"), python=None, progress=RecordedProgress()
        )
    told = f"stage quantize failed: expected all weights, found none ({job.model}); fetch it again"
    assert str(refused.value) == told


def test_a_worker_does_not_outlive_a_killed_pipeline(job: QuantizeJob, tmp_path: Path) -> None:
    sleeping = replace(job, method="sleep")
    sleeping.write(tmp_path / "job.json")
    script = (
        "import sys; from pathlib import Path; from pipeline.progress import PlainProgress;"
        "from pipeline.quantize import QuantizeJob, worker;"
        "job = QuantizeJob.read(Path(sys.argv[1]));"
        "worker.run_worker('tests.harness.builds.workers', job, python=None, progress=PlainProgress())"
    )
    pipeline = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "job.json")], stderr=subprocess.DEVNULL)
    try:
        pid = int(wait_for(lambda: (job.out / "pid").read_text() if (job.out / "pid").exists() else ""))
    finally:
        pipeline.send_signal(signal.SIGKILL)
        pipeline.wait()
    assert wait_for(lambda: not is_running(pid))


def test_an_interrupted_pipeline_ends_its_worker(job: QuantizeJob) -> None:
    class Impatient(RecordedProgress):
        def advance(self, fraction: float) -> None:
            wait_for((job.out / "pid").exists)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.run_worker(
            "tests.harness.builds.workers", replace(job, method="sleep"), python=None, progress=Impatient()
        )
    assert not is_running(int((job.out / "pid").read_text()))


def test_an_unknown_method_is_refused_before_anything_starts(job: QuantizeJob) -> None:
    with pytest.raises(StageError, match="expected one of the methods awq, gptq, fp8, int8, found 'nf4'"):
        quantize(replace(job, method="nf4"), python=Path("/nowhere"), progress=RecordedProgress())


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_calibrated_method_without_samples_is_refused(job: QuantizeJob, method: str) -> None:
    with pytest.raises(StageError, match="needs calibration samples"):
        quantize(replace(job, method=method), python=Path("/nowhere"), progress=RecordedProgress())


def wait_for(probe, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not (found := probe()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
