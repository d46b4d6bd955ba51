"""The whole way: a run publishes what it made, and a runtime that knows only its name serves it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.steps.stage_runner import StageRunner
from runtime import artifact
from tests.client import Options, TurnRecord, connect
from tests.harness.server import Server
from tests.hub import Account, Hub
from tests.hub.artifacts import contents
from tests.hub.client import key_pair

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

REPO = "acme/smollm2-135m-int8"
TOKEN = "hf_writer"


def run_and_push(hub: Hub, stages: Path, out: Path, key: Path) -> None:
    """`yap-pipeline run … --push-quant`, its stages done before."""
    environment = {
        **os.environ,
        **hub.environment(TOKEN, HF_PUSH_REPO_ID=REPO),
        "AWQ_CACHE_DIR": str(stages),
        "AWQ_NSAMPLES": "16",
        "AWQ_SEQLEN": "256",
    }
    words = ["run", "--cpu", "int8", "embedded", "embedded", "--out", str(out), "--push-quant", "--sign-key", str(key)]
    line = [sys.executable, "-m", "pipeline", *words]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


async def ask(url: str, key: str) -> TurnRecord:
    """One turn."""
    options = Options(url=url, api_key=key, sampling={"temperature": 0})
    async with connect(options, persona="You are a helpful assistant.") as talk:
        return await TurnRecord(talk.say("What is the capital of France?")).whole()


async def test_a_published_artifact_is_pulled_by_name_and_answers(
    artifact_of: Callable[[str], Path], stages: StageRunner, tmp_path: Path
) -> None:
    made = artifact_of("int8")
    secret, public = key_pair(tmp_path)
    out = tmp_path / "int8"
    shutil.copytree(made, out)
    with Hub(accounts={TOKEN: Account("acme")}, part_size=32 << 20) as hub:
        hub.fail("PUT", "/parts/2$", status=0, after_bytes=10 << 20)
        run_and_push(hub, stages.cache, out, secret)
        repository = hub.repositories[REPO]
        assert len(repository.commits) == 2
        assert {path: repository.files[path] for path in contents(out)} == contents(out)
        assert (out / "model.sig").read_bytes() == repository.files["model.sig"]
        hub.fail("GET", "^/storage/", status=0, after_bytes=30 << 20)
        settings = {
            **hub.environment(TOKEN),
            "ARTIFACT": f"hf:{REPO}@{repository.head.oid}",
            "ARTIFACT_CACHE_DIR": str(tmp_path / "cache"),
            "ARTIFACT_PUBLIC_KEY_FILE": str(public),
        }
        with Server(Path(), **settings) as server:
            server.wait_ready()
            turn = await ask(server.url, server.api_key)
            assert turn.ok
            assert "paris" in turn.text.lower()
            assert server.stop() == 0
        [folder] = (tmp_path / "cache").glob("artifacts/*/*/whole")
        assert contents(folder) == contents(out)
        assert artifact.read(folder).digest == artifact.read(made).digest
