"""Candidates' processes: what they tell, and what becomes of those that crash, hang or write nonsense."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.stage import StageError
from pipeline.tuning import worker
from pipeline.tuning.trial_process import PROJECT_ROOT, WORKER, reason
from pipeline.tuning.trials import Trials, TuningRequest, tune_here
from pipeline.tuning.tuner import TrialError
from pipeline.tuning.worker import Job
from pipeline.validate.text_under_load import Asked, TextLoss
from runtime.artifact import EngineChoices, Limits, TunedFigures
from runtime.engines import EngineOptions
from runtime.host.machine import Machine
from tests.harness.builds.progress import RecordedProgress
from tests.harness.scripted import ScriptedEngine, Words

LIMITS = Limits(max_batch_size=4, max_input_len=100, max_output_len=50, max_model_len=160)
TEXTS = [list(range(1, 400))]


def trials(tmp_path: Path, code: str, *, limit_s: float = 60.0) -> Trials:
    """Trials whose worker is a program of a few lines; `job` is the job's document."""
    program = tmp_path / "worker.py"
    program.write_text(
        "import json, os, subprocess, sys, time\nfrom pathlib import Path\n"
        "job = json.loads(Path(sys.argv[1]).read_text())\nout = Path(job['out'])\n" + textwrap.dedent(code)
    )
    request = TuningRequest("latency", tmp_path, "vllm", LIMITS, "none")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Trials(request, TEXTS, scratch, command=(sys.executable, str(program)), limit_s=limit_s)


MEASURED = """
figures = {"itl_ms": 4.0, "ttft_ms": 50.0, "tokens_per_s": 900.0}
out.write_text(json.dumps({"runs": [figures, figures], "replies": [[1, 2], [3]]}))
"""


def test_what_a_process_measured_is_read_and_it_is_told_all(tmp_path: Path) -> None:
    tried = trials(tmp_path, MEASURED + f"Path({str(tmp_path / 'told')!r}).write_text(sys.argv[1] + json.dumps(job))")
    found = tried.measure(EngineChoices(cudagraph_mode="FULL", capture_sizes=(1, 4)))
    assert [run.itl_ms for run in found.runs] == [4.0, 4.0]
    assert found.replies == ((1, 2), (3,))
    told = (tmp_path / "told").read_text()
    assert '"cudagraph_mode": "FULL"' in told
    assert '"capture_sizes": [1, 4]' in told
    assert '"max_num_seqs": 4' in told
    assert list(tried.scratch.glob("trial-*")) == []


def test_the_kernels_that_the_engine_tells_are_kept(tmp_path: Path) -> None:
    code = """
    assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"
    print("(EngineCore pid=7) INFO 01-01 [x.py:1] Using MarlinLinearKernel for CompressedTensorsWNA16", flush=True)
    print("INFO Using MarlinLinearKernel for CompressedTensorsWNA16\\nINFO Using FLASH_ATTN attention backend out of")
    print("INFO Selected CutlassFP8ScaledMMLinearKernel for CompressedTensorsW8A8Fp8", file=sys.stderr)
    """
    found = trials(tmp_path, textwrap.dedent(code) + MEASURED).measure(EngineChoices())
    assert set(found.kernels) == {"MarlinLinearKernel", "FLASH_ATTN", "CutlassFP8ScaledMMLinearKernel"}
    assert len(found.kernels) == 3


def test_replies_are_judged_without_graphs(tmp_path: Path) -> None:
    code = """
    assert job["options"]["enforce_eager"] and job["served"] == [[1]] and job["plain"] == [[2]]
    out.write_text('{"mean": 0.25, "worst": 1}')
    """
    assert trials(tmp_path, code).judge(((1,),), ((2,),)) == TextLoss(0.25, 1.0)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("sys.exit('RuntimeError: no such kernel')", "ended with 1: RuntimeError: no such kernel"),
        ("os.kill(os.getpid(), 11)", "ended with -11: no output"),
        ("pass", "wrote no result"),
        ("out.write_text('nonsense')", "wrote no result"),
        ("out.write_text('[1]')", "wrote no result"),
        ("out.write_text('{}')", "expected figures"),
        ('out.write_text(\'{"runs": [{"itl_ms": 0, "ttft_ms": 1, "tokens_per_s": 1}], "replies": []}\')', "expected"),
        ('out.write_text(\'{"runs": [{"itl_ms": NaN, "ttft_ms": 1, "tokens_per_s": 1}], "replies": []}\')', "expected"),
        ('out.write_text(\'{"runs": 3, "replies": []}\')', "expected figures"),
    ],
)
def test_a_process_that_fails_is_told_in_one_line(tmp_path: Path, code: str, told: str) -> None:
    with pytest.raises(TrialError, match=told):
        trials(tmp_path, code).measure(EngineChoices())


def alive(status: Path) -> bool:
    """Whether a process is neither gone nor dead; a dead one waits for the process that it was left to."""
    try:
        return status.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_process_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    code = f"""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
    time.sleep(600)
    """
    with pytest.raises(TrialError, match="nothing within 12 s"):
        trials(tmp_path, code, limit_s=12).measure(EngineChoices())
    status = Path("/proc", (tmp_path / "child").read_text(), "stat")
    until = time.monotonic() + 60  # the system may take its time to end what was killed
    while alive(status):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_prompts_fit_the_limits_and_are_one_a_stream(tmp_path: Path) -> None:
    tried = trials(tmp_path, "")
    assert len(tried.prompts) == 4
    assert len({len(prompt) for prompt in tried.prompts}) == 1
    assert len(set(tried.prompts)) == 4
    assert all(len(one.prompt) + one.reply_tokens < LIMITS.max_model_len for one in tried.asked)


def test_of_a_log_the_error_is_told_that_is_no_consequence(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("loading\nValueError: FULL is not supported\nRuntimeError: Engine failed. See root cause above.\n\n")
    assert reason(log) == "ValueError: FULL is not supported"
    log.write_text("a line\nlast\n")
    assert reason(log) == "last"


def test_a_model_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    request = TuningRequest("latency", tmp_path, "vllm", LIMITS, "none")
    with pytest.raises(StageError, match="stage tune failed"):
        tune_here(request, Machine(), tmp_path, RecordedProgress())


JOB = Job(
    "measure",
    Path("model"),
    "vllm",
    EngineOptions(capture_sizes=(1, 2), fusions=("fuse_act_quant",), max_num_seqs=4),
    4,
    (Asked((1, 2), 3), Asked((4,), 2)),
    ((5, 6), (7, 8)),
    (5, 6, 7),
    Path("out"),
)


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    for job in (JOB, replace(JOB, kind="judge", served=((1,), (2, 3)), plain=((4,), (5,)))):
        job.write(tmp_path / "job.json")
        assert Job.read(tmp_path / "job.json") == job


def test_a_worker_measures_each_repeat_and_keeps_the_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(reply=("a", "b", "c"), pause=0.0001)
    monkeypatch.setattr(worker.engines, "for_model", lambda *_: engine)
    monkeypatch.setattr(worker, "SILENCE_S", 0.0)
    words = tuple(Words.ids_of("who is it"))
    job = replace(JOB, asked=tuple(Asked(words, 3) for _ in range(2)), prompts=(words, words), long=words)
    found = asyncio.run(worker.work(job))
    assert len(found["runs"]) == worker.REPEATS
    assert all(value > 0 for run in found["runs"] for value in run.values())
    assert all(run.keys() == TunedFigures.model_fields.keys() for run in found["runs"])
    assert len(found["replies"]) == 2
    assert all(found["replies"])
    runs, streams = worker.REPEATS + 1, len(job.prompts)
    assert len(engine.woken) == runs * (worker.STARTS + worker.BURSTS)
    assert len(engine.prompts) == 2 + runs * (2 + worker.LONGS + worker.STARTS + streams * (worker.BURSTS + 1))


def test_first_tokens_are_measured_out_of_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float, *_: Any) -> None:
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(worker.engines, "for_model", lambda *_: ScriptedEngine(reply=("a", "b"), pause=0.0001))
    monkeypatch.setattr(worker.asyncio, "sleep", noted)
    words = tuple(Words.ids_of("who is it"))
    asyncio.run(worker.work(replace(JOB, asked=(Asked(words, 3),), prompts=(words,), long=words)))
    assert slept.count(worker.SILENCE_S) == (worker.REPEATS + 1) * (worker.STARTS + worker.BURSTS)


def test_a_worker_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.engines, "for_model", lambda *_: ScriptedEngine())
    job = replace(JOB, kind="judge", served=((1,), (2, 3)), plain=((4,), (5,)))
    assert asyncio.run(worker.work(job)) == {"mean": 0.0, "worst": 0.0}


def test_the_worker_is_started_with_this_interpreter() -> None:
    assert WORKER[0] == sys.executable
    assert (PROJECT_ROOT / "pipeline/tuning/worker.py").is_file()
    assert os.access(sys.executable, os.X_OK)
