"""The whole pipeline for real: what the plan promised of the embedded models, and a run that is killed on its way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.source import model_source as source
from pipeline.steps.stage_runner import StageRunner
from runtime import artifact
from runtime.artifact.verify import check_artifact
from runtime.host.machine import describe

pytestmark = pytest.mark.engine


def test_the_embedded_chat_model_is_what_the_plan_took_it_for(chat_folder: Path) -> None:
    config = json.loads((chat_folder / "config.json").read_text())
    assert {name: config.get(name) for name in source.EMBEDDED_CHAT} == source.EMBEDDED_CHAT
    facts = source.read_facts(str(chat_folder), "CHAT_MODEL")
    assert facts.problems == ()
    assert facts.license == "apache-2.0"


def test_the_embedded_classifier_is_what_the_plan_took_it_for(artifact_of: Callable[[str], Path]) -> None:
    config = json.loads((artifact_of("int8") / "tool" / "config.json").read_text())
    changed = {"vocab_size"}  # training adds a token for the boundary between turns
    expected = {name: value for name, value in source.EMBEDDED_TOOL.items() if name not in changed}
    assert {name: config.get(name) for name in expected} == expected


def test_a_real_artifact_is_accepted_by_the_runtime(artifact_of: Callable[[str], Path]) -> None:
    metadata = check_artifact(artifact_of("int8"), describe(), batch_size=8)
    assert metadata.validation is not None
    measured = {gate.name: gate.value for gate in metadata.validation.gates}
    assert measured["perplexity_ratio"] < 1.05
    assert metadata.tool is not None
    assert (metadata.tool.accuracy or 0) >= 0.93


def test_a_run_killed_while_quantizing_and_while_proving_ends_in_the_same_digest(
    artifact_of: Callable[[str], Path], stages: StageRunner, tmp_path: Path
) -> None:
    whole = artifact.read(artifact_of("int8"))
    cache, out = tmp_path / "cache", tmp_path / "artifact"
    again = ("quantize", "build", "validate")
    shutil.copytree(stages.cache, cache, ignore=lambda folder, _: again if Path(folder) == stages.cache else ())
    command = [sys.executable, "-m", "pipeline", "run", "--cpu", "int8", "embedded", "embedded", "--out", str(out)]
    environment = os.environ | {"AWQ_CACHE_DIR": str(cache), "AWQ_NSAMPLES": "16", "AWQ_SEQLEN": "256"}
    environment["CHAT_MAX_LEN"] = "1024"  # what a long prompt takes is measured elsewhere

    def run(until: str | None) -> str:
        """Run to the end, or kill -9 as soon as a line of progress holds `until`; returns the progress."""
        seen = []
        with subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            for line in process.stderr or ():
                seen.append(line)
                if until and until in line:
                    process.kill()
                    # Engines and quantizers notice by themselves, but a test leaves nothing to chance.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    break
        assert process.returncode == (-signal.SIGKILL if until else 0), "".join(seen)[-4000:]
        return "".join(seen)

    run(until="int8:")
    assert not out.exists()
    run(until="starting the engine on the artifact")
    assert not out.exists()
    last = run(until=None)
    for stage in ("source", "calibration", "quantize", "tool", "build", "reference"):
        assert f"{stage}: done before" in last
    assert artifact.read(out).digest == whole.digest
    assert not list(cache.glob("*/*.partial-*"))
