"""What the integration tests share: one chat model, and artifacts of it, a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def chat_folder(pytestconfig: pytest.Config) -> Path:
    """The embedded chat model as a Hugging Face folder; kept between runs, because writing it takes half a minute."""
    from pipeline.embedded.chat import export_chat
    from pipeline.progress import PlainProgress

    folder = Path(pytestconfig.cache.mkdir("chat-model"))
    whole = folder / "whole"
    if not whole.exists():
        export_chat(folder, PlainProgress())
        whole.touch()
    return folder


@pytest.fixture(scope="session")
def artifact_of(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The embedded models as a proven artifact, by the command that a user types; one for each method a session.

    Finished stages are kept between runs. Few and short samples: enough for the gates, and quick on two cores.
    """
    finished = Path(pytestconfig.cache.mkdir("stages"))
    environment = os.environ | {"AWQ_CACHE_DIR": str(finished), "AWQ_NSAMPLES": "16", "AWQ_SEQLEN": "256"}

    @cache
    def make(method: str) -> Path:
        out = tmp_path_factory.mktemp("artifacts") / method
        command = [sys.executable, "-m", "pipeline", "run", "--cpu", method, "embedded", "embedded", "--out", str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return out

    return make
