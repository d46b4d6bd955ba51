"""What the integration tests share: one chat model, and artifacts of it, a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from pipeline.progress import PlainProgress
from pipeline.source.model_source import EMBEDDED, read_facts
from pipeline.steps.stage_runner import StageRunner
from runtime.host.machine import describe

# What vLLM, or this project for it, sets in its own process for one engine.
FOR_ONE_ENGINE = ("VLLM_WORKER_MULTIPROC_METHOD", "TORCHDYNAMO_DISABLE")


@pytest.fixture(scope="module", autouse=True)
def as_before_the_engine() -> Iterator[None]:
    """The engines of the next module are asked for as those of this one were."""
    before = {name: os.environ.get(name) for name in FOR_ONE_ENGINE}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def stages(pytestconfig: pytest.Config) -> StageRunner:
    """The pipeline's finished stages, kept between runs: what one test makes, or a command, is there for the others."""
    return StageRunner(Path(pytestconfig.cache.mkdir("stages")), describe(), PlainProgress())


@pytest.fixture(scope="session")
def chat_folder(stages: StageRunner) -> Path:
    """The embedded chat model as a Hugging Face folder. Nobody may write there."""
    return stages.chat_source(read_facts(EMBEDDED, "CHAT_MODEL")).folder


@pytest.fixture(scope="session")
def artifact_of(stages: StageRunner, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The embedded models as a proven artifact, by the command that a user types; one for each method a session.

    Few and short samples: enough for the gates, and quick on two cores.
    """
    environment = os.environ | {"AWQ_CACHE_DIR": str(stages.cache), "AWQ_NSAMPLES": "16", "AWQ_SEQLEN": "256"}

    @cache
    def make(method: str) -> Path:
        out = tmp_path_factory.mktemp("artifacts") / method
        command = [sys.executable, "-m", "pipeline", "run", "--cpu", method, "embedded", "embedded", "--out", str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return out

    return make
