"""Weights of a model on the hub: what arrives, what a kill or a bad link costs, what needs no network afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from pipeline.source import SourceFacts
from pipeline.source import model_source as source
from pipeline.stages.stage import StageError
from pipeline.steps.stage_runner import StageRunner
from runtime.artifact import ArtifactError
from tests.harness.builds.progress import RecordedProgress
from tests.hub import Account, Hub
from tests.hub.artifacts import CPU
from tests.hub.client import configure_client, kill_midway
from tests.hub.models import publish, safetensors
from tests.hub.store import Stored

REPO, TOKEN = "acme/llama", "hf_writer"
ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub(accounts={TOKEN: Account("acme"), "hf_other": Account("eve")}) as running:
        configure_client(monkeypatch, running)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
        yield running
        huggingface_hub.close_session()


def read_facts(ref: str = REPO) -> SourceFacts:
    facts = source.read_facts(ref, "CHAT_MODEL")
    assert facts.problems == ()
    return facts


def same(fetched: Path, folder: Path) -> bool:
    """Whether all that a model needs has arrived."""
    wanted = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".png"}
    return {path.name: path.read_bytes() for path in fetched.iterdir()} == wanted


def ranges(hub: Hub) -> list[str]:
    """The ranges that were asked for to resume; those with an end are of headers."""
    asked = [request.range for request in hub.requests("GET", "^/storage/") if request.range]
    return [part for part in asked if part.endswith("-")]


def weights_sent(hub: Hub) -> int:
    """Bytes of large files that were sent, beside the headers that a plan reads."""
    sent = hub.requests("GET", "^/storage/")
    return sum(request.sent for request in sent if not request.range or request.range.endswith("-"))


def test_what_arrives_is_what_is_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    commit = publish(hub, REPO, tmp_path / "model")
    steps = RecordedProgress()
    fetched = source.fetch(read_facts(), steps)
    assert same(fetched, tmp_path / "model")
    assert fetched.name == commit.oid
    assert not hub.requests("GET", r"picture\.png")


def test_each_large_file_is_sent_once(hub: Hub, tmp_path: Path) -> None:
    commit = publish(hub, REPO, tmp_path / "model")
    source.fetch(read_facts(), RecordedProgress())
    large = sum(len(stored.content) for stored in commit.files.values() if stored.lfs)
    assert weights_sent(hub) == large
    hub.seen.clear()
    source.fetch(read_facts(), RecordedProgress())
    assert weights_sent(hub) == 0


def test_what_the_client_has_brought_is_not_brought_again(hub: Hub, tmp_path: Path) -> None:
    publish(hub, REPO, tmp_path / "model")
    huggingface_hub.snapshot_download(REPO)
    hub.seen.clear()
    assert same_names(source.fetch(read_facts(), RecordedProgress()), tmp_path / "model")
    assert weights_sent(hub) == 0


def same_names(fetched: Path, folder: Path) -> bool:
    return {path.name for path in fetched.iterdir()} == {path.name for path in folder.iterdir()}


def test_a_new_revision_brings_what_changed(hub: Hub, tmp_path: Path) -> None:
    old = publish(hub, REPO, tmp_path / "model")
    hub.repositories[REPO].tags["v1"] = old.oid
    source.fetch(read_facts(), RecordedProgress())
    publish(hub, REPO, tmp_path / "newer", weights=123_456)
    hub.seen.clear()
    assert same(source.fetch(read_facts(f"{REPO}@main"), RecordedProgress()), tmp_path / "newer")
    assert weights_sent(hub) == len(safetensors(123_456))
    assert same(source.fetch(read_facts(f"{REPO}@v1"), RecordedProgress()), tmp_path / "model")


@pytest.mark.parametrize("revision", ["", "@main", "@v1"])
def test_a_model_that_was_fetched_is_there_without_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    commit = publish(hub, REPO, tmp_path / "model")
    hub.repositories[REPO].tags["v1"] = commit.oid
    first = source.fetch(read_facts(REPO + revision), RecordedProgress())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.seen.clear()
    facts = read_facts(REPO + revision)
    assert source.fetch(facts, RecordedProgress()).resolve() == first.resolve()
    assert same(first, tmp_path / "model")
    assert hub.seen == []


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 0, "after_bytes": 200_000},
        {"status": 0, "after_bytes": 1, "times": 3},
        {"status": 503},
        {"status": 429, "headers": {"Retry-After": "0"}},
    ],
)
def test_a_bad_link_costs_what_was_not_sent(hub: Hub, tmp_path: Path, fault: dict[str, Any]) -> None:
    publish(hub, REPO, tmp_path / "model")
    facts = read_facts()
    hub.fail("GET", f"^/storage/{facts.hashes['model.safetensors']}", **fault)
    assert same(source.fetch(facts, RecordedProgress()), tmp_path / "model")
    assert bool(ranges(hub)) == bool(fault.get("after_bytes"))


def test_a_link_that_breaks_often_is_used_as_long_as_it_brings_something(hub: Hub, tmp_path: Path) -> None:
    publish(hub, REPO, tmp_path / "model", weights=20 << 20)
    facts = read_facts()
    hub.fail("GET", f"^/storage/{facts.hashes['model.safetensors']}", status=0, after_bytes=3 << 19, times=12)
    steps = RecordedProgress()
    assert same(source.fetch(facts, steps), tmp_path / "model")
    assert len(ranges(hub)) >= 12
    assert all(0 <= fraction <= 1 for fraction in steps.fractions)


def test_the_bytes_are_shown_while_they_come(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, REPO, tmp_path / "model", weights=1 << 20)
    facts = read_facts()
    monkeypatch.setattr("pipeline.source.weights.SECONDS_BETWEEN_FRACTIONS", 0.02)
    hub.fail("GET", f"^/storage/{facts.hashes['model.safetensors']}", bytes_per_s=1 << 20)
    steps = RecordedProgress()
    source.fetch(facts, steps)
    assert steps.fractions == sorted(steps.fractions)
    assert any(0 < fraction < 1 for fraction in steps.fractions)


FETCH = """
import sys
from pipeline import source
from pipeline.progress import PlainProgress
print(source.fetch(source.read_facts(sys.argv[1], "CHAT_MODEL"), PlainProgress()))
"""


def test_a_killed_download_goes_on_in_the_next_process(hub: Hub, tmp_path: Path) -> None:
    publish(hub, REPO, tmp_path / "model", weights=40 << 20)
    facts = read_facts()
    slow = hub.fail("GET", f"^/storage/{facts.hashes['model.safetensors']}", bytes_per_s=12 << 20, times=99)
    environment = {**os.environ, **hub.environment(), "HF_HOME": str(tmp_path / "home")}
    line = [sys.executable, "-c", FETCH, REPO]
    first = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / f"home/hub/models--acme--llama/blobs/{facts.hashes['model.safetensors']}.partial"
    arrived = kill_midway(first, partial)
    slow.bytes_per_s = 1 << 30
    second = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert same(Path(second.stdout.strip()), tmp_path / "model")
    assert ranges(hub) == [f"bytes={arrived}-"]


def test_a_private_model_takes_a_token_from_a_file_and_keeps_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, REPO, tmp_path / "model", private=True)
    assert "none that this token may see" in str(source.read_facts(REPO, "CHAT_MODEL").problems)
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("HF_TOKEN_FILE", str(tmp_path / "token"))
    assert same(source.fetch(read_facts(), RecordedProgress()), tmp_path / "model")
    assert {(request.host, request.token) for request in hub.requests("GET", "^/storage/")} == {("localhost", None)}


def test_two_tokens_are_one_problem(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_one")
    monkeypatch.setenv("HUGGINGFACE_HUB_TOKEN", "hf_two")
    [problem] = source.read_facts(REPO, "CHAT_MODEL").problems
    assert str(problem) == "HF_TOKEN and HUGGINGFACE_HUB_TOKEN: expected one token, found 2; unset one"


def test_a_gated_model_is_refused_before_a_byte(hub: Hub, tmp_path: Path) -> None:
    publish(hub, REPO, tmp_path / "model")
    facts = read_facts()
    hub.repositories[REPO].gated = True
    with pytest.raises(huggingface_hub.errors.GatedRepoError):
        source.fetch(facts, RecordedProgress())
    with pytest.raises(StageError, match="status 403, the token may not do this"):
        StageRunner(tmp_path / "cache", CPU, RecordedProgress()).chat_source(facts)
    assert weights_sent(hub) == 0


def test_other_bytes_than_the_hub_lists_are_refused(hub: Hub, tmp_path: Path) -> None:
    commit = publish(hub, REPO, tmp_path / "model")
    facts = read_facts()
    wrong = Stored(b"x" * facts.sizes["model.safetensors"], lfs=False)
    hub.repositories[REPO].commits[-1] = type(commit)(commit.oid, "", {**commit.files, "model.safetensors": wrong})
    with pytest.raises(ArtifactError, match=r"model\.safetensors: expected SHA-256 .*, found other bytes on the hub"):
        source.fetch(facts, RecordedProgress())
    with pytest.raises(StageError, match="found other bytes on the hub") as refused:
        StageRunner(tmp_path / "cache", CPU, RecordedProgress()).chat_source(facts)
    assert "\n" not in str(refused.value)


def test_one_file_that_fails_ends_the_others(hub: Hub, tmp_path: Path) -> None:
    publish(hub, REPO, tmp_path / "model", weights=20 << 20)
    facts = read_facts()
    hub.fail("GET", f"^/storage/{facts.hashes['model.safetensors']}", bytes_per_s=1 << 20, times=99)
    hub.fail("GET", f"^/storage/{facts.hashes['tokenizer.json']}", status=404, times=99)
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError):
        source.fetch(facts, RecordedProgress())
    assert all(request.sent < 20 << 20 for request in hub.requests("GET", "^/storage/"))
