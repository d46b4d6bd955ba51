"""Fetching an artifact by name: what arrives, what is refused, what works without network, and what a kill costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from pydantic import SecretStr

from pipeline.publish.preconditions import Destination
from pipeline.publish.push import push
from runtime import artifact
from runtime.artifact import ArtifactError, verify
from runtime.artifact.checks.sharing import AS_BUILT, Sharing
from runtime.artifact.fetch import Fetcher
from runtime.artifact.repository import Reference
from runtime.host.machine import Machine
from tests.harness.builds.progress import RecordedProgress
from tests.hub import Account, Hub
from tests.hub.artifacts import A100, CPU, H100, contents, cpu_artifact, engine_artifact, gpu_machine, random_bytes
from tests.hub.client import configure_client, key_pair, kill_midway
from tests.hub.store import Stored

# The client hands httpx the files that it uploads as `data`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

REPO = "acme/llama-8b-int8"
TOKEN = "hf_writer"
ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(accounts={TOKEN: Account("acme"), "hf_other": Account("eve")}) as running:
        configure_client(monkeypatch, running, TOKEN)
        yield running
        huggingface_hub.close_session()


@pytest.fixture
def published(hub: Hub, tmp_path: Path) -> Path:
    """An artifact in a private repository on the hub; nothing seen yet."""
    folder = cpu_artifact(tmp_path / "artifact", tool=True)
    put(folder)
    hub.seen.clear()
    return folder


def put(folder: Path, sign_key: Path | None = None) -> None:
    push(folder, Destination(REPO, True, SecretStr(TOKEN)), sign_key, RecordedProgress())


def fetcher(tmp_path: Path, machine: Machine = CPU, **more: Any) -> Fetcher:
    return Fetcher(tmp_path / "cache", machine, lambda line: None, **more)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_what_arrives_is_what_was_published_and_may_be_served(hub: Hub, published: Path, tmp_path: Path) -> None:
    folder = fetcher(tmp_path).fetch(f"hf:{REPO}@main")
    assert contents(folder) == contents(published)
    assert verify.check_artifact(folder, CPU).digest == artifact.read(published).digest


def test_every_file_is_read_at_one_commit(hub: Hub, published: Path, tmp_path: Path) -> None:
    commit = hub.repositories[REPO].head.oid
    folder = fetcher(tmp_path).fetch(f"hf:{REPO}")
    assert folder.parent.name == commit
    read = [request.path for request in hub.requests("GET", "/resolve/")]
    assert read
    assert all(f"/resolve/{commit}/" in path for path in read)


def test_the_token_does_not_leave_the_hub(hub: Hub, published: Path, tmp_path: Path) -> None:
    fetcher(tmp_path).fetch(f"hf:{REPO}")
    stored = hub.requests("GET", "^/storage/")
    assert stored
    assert {(request.host, request.token) for request in stored} == {("localhost", None)}


def test_a_pinned_commit_in_the_cache_needs_no_network(hub: Hub, published: Path, tmp_path: Path) -> None:
    pinned = f"hf:{REPO}@{hub.repositories[REPO].head.oid}"
    first = fetcher(tmp_path).fetch(pinned)
    hub.seen.clear()
    assert fetcher(tmp_path).fetch(pinned) == first
    assert hub.seen == []


@pytest.mark.parametrize("how", ["offline", "unreachable", "broken"])
def test_a_branch_is_what_it_was_while_the_hub_is_away(
    hub: Hub, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    first = fetcher(tmp_path).fetch(f"hf:{REPO}@main")
    if how == "offline":
        offline(monkeypatch)
    elif how == "unreachable":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.fail("GET", "/api/models/", status=502, times=99)
    assert fetcher(tmp_path).fetch(f"hf:{REPO}@main") == first


def test_a_new_revision_downloads_what_changed(hub: Hub, published: Path, tmp_path: Path) -> None:
    fetcher(tmp_path).fetch(f"hf:{REPO}")
    newer = cpu_artifact(tmp_path / "newer", weights=random_bytes("newer", 123_456), tool=True)
    put(newer)
    hub.seen.clear()
    folder = fetcher(tmp_path).fetch(f"hf:{REPO}")
    assert contents(folder) == contents(newer)
    assert sum(request.sent for request in hub.requests("GET", "^/storage/")) == 123_456


def test_a_tag_can_be_named(hub: Hub, published: Path, tmp_path: Path) -> None:
    hub.repositories[REPO].tags["v1.0"] = hub.repositories[REPO].head.oid
    cpu = cpu_artifact(tmp_path / "later", weights=b"later")
    put(cpu)
    assert contents(fetcher(tmp_path).fetch(f"hf:{REPO}@v1.0")) == contents(published)


# Interruptions


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 0, "after_bytes": 200_000},
        {"status": 503},
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"bytes_per_s": 600_000},
    ],
)
def test_an_interrupted_download_goes_on_where_it_was(
    hub: Hub, published: Path, tmp_path: Path, fault: dict[str, Any]
) -> None:
    [weights] = [entry for entry in artifact.read(published).files if entry.path == "model.safetensors"]
    hub.fail("GET", f"^/storage/{weights.sha256}", **fault)
    folder = fetcher(tmp_path).fetch(f"hf:{REPO}")
    assert contents(folder) == contents(published)
    if fault.get("after_bytes"):
        assert [request.range for request in hub.requests("GET", "^/storage/") if request.range] == ["bytes=200000-"]


FETCH = """
import sys
from pathlib import Path
from runtime.artifact.fetch import Fetcher
from tests.hub.artifacts import CPU
print(Fetcher(Path(sys.argv[1]), CPU, lambda line: print(line, flush=True)).fetch(sys.argv[2]))
"""


def test_a_killed_download_is_resumed_by_the_next_process(hub: Hub, tmp_path: Path) -> None:
    folder = cpu_artifact(tmp_path / "artifact", weights=random_bytes("large", 40 << 20))
    put(folder)
    hub.seen.clear()
    slow = hub.fail("GET", "^/storage/", bytes_per_s=12 << 20, times=99)
    line = [sys.executable, "-c", FETCH, str(tmp_path / "cache"), f"hf:{REPO}"]
    environment = {**os.environ, **hub.environment(TOKEN)}
    first = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    blobs = tmp_path / "cache" / "blobs"
    [weights] = [entry for entry in artifact.read(folder).files if entry.path == "model.safetensors"]
    partial = blobs / f"{weights.sha256}.partial"
    arrived = kill_midway(first, partial)
    assert not list((tmp_path / "cache" / "artifacts").glob("*/*/whole"))
    slow.bytes_per_s = 1 << 30
    hub.seen.clear()
    fetched = fetcher(tmp_path).fetch(f"hf:{REPO}")
    assert contents(fetched) == contents(folder)
    # The killed one may end in the hub's eyes a little later.
    [resumed] = [request for request in hub.requests("GET", "^/storage/") if request.range]
    assert resumed.range == f"bytes={arrived}-"
    assert resumed.sent == (40 << 20) - arrived


def test_a_damaged_partial_file_is_thrown_away(hub: Hub, published: Path, tmp_path: Path) -> None:
    [weights] = [entry for entry in artifact.read(published).files if entry.path == "model.safetensors"]
    blobs = tmp_path / "cache" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{weights.sha256}.partial").write_bytes(b"not these bytes")
    assert contents(fetcher(tmp_path).fetch(f"hf:{REPO}")) == contents(published)


def test_damage_in_the_cache_is_mended(hub: Hub, published: Path, tmp_path: Path) -> None:
    folder = fetcher(tmp_path).fetch(f"hf:{REPO}")
    weights = folder / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"cut off")
    again = fetcher(tmp_path).fetch(f"hf:{REPO}")
    assert contents(again) == contents(published)


# Refusals, one line each


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("hf:acme/nothing", TOKEN, "expected a repository that this token may read, found none"),
        (f"hf:{REPO}", "hf_other", "expected a repository that this token may read, found none"),
        (f"hf:{REPO}", None, "expected a repository that this token may read, found none"),
        (f"hf:{REPO}", "hf_wrong", "status 401, it does not accept the token; set HF_TOKEN"),
        (f"hf:{REPO}@v9", TOKEN, "expected the revision v9, found none of that name"),
        (f"hf:{REPO}@{'0' * 40}", TOKEN, f"expected the revision {'0' * 40}, found none"),
        ("hf:acme", TOKEN, "expected hf:org/repo@revision, found 'hf:acme'"),
        ("hf:acme/llama@", TOKEN, "expected hf:org/repo@revision"),
        ("hf:../../etc@main", TOKEN, "expected hf:org/repo@revision"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_line(
    hub: Hub,
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    token: str | None,
    message: str,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    with pytest.raises(ArtifactError, match=re.escape(message)) as refused:
        fetcher(tmp_path, environment={"HF_TOKEN": token} if token else {}).fetch(name)
    assert "\n" not in str(refused.value)
    assert token is None or token not in str(refused.value)


def test_a_gated_repository_says_so(hub: Hub, published: Path, tmp_path: Path) -> None:
    hub.repositories[REPO].gated, hub.repositories[REPO].private = True, False
    with pytest.raises(ArtifactError, match="found a gated one; accept its terms"):
        fetcher(tmp_path, environment={"HF_TOKEN": "hf_other"}).fetch(f"hf:{REPO}")


def test_a_repository_without_metadata_is_no_artifact(hub: Hub, published: Path, tmp_path: Path) -> None:
    hub.repositories[REPO].commit("empty", {"config.json": Stored(b"{}", lfs=False)})
    with pytest.raises(ArtifactError, match=r"expected an artifact with build_metadata\.json"):
        fetcher(tmp_path).fetch(f"hf:{REPO}")


def test_a_file_with_other_bytes_is_refused(hub: Hub, published: Path, tmp_path: Path) -> None:
    repository = hub.repositories[REPO]
    altered = random_bytes("altered", 300_000)
    repository.commit("alter", {**repository.head.files, "model.safetensors": Stored(altered, lfs=True)})
    with pytest.raises(ArtifactError, match=r"model\.safetensors: expected SHA-256 .*, found other bytes on the hub"):
        fetcher(tmp_path).fetch(f"hf:{REPO}")
    assert not list((tmp_path / "cache").glob("artifacts/*/*/whole"))


@pytest.mark.parametrize("size", [10, 500_000])
def test_a_file_of_another_size_is_refused(hub: Hub, published: Path, tmp_path: Path, size: int) -> None:
    repository = hub.repositories[REPO]
    repository.commit("cut", {**repository.head.files, "model.safetensors": Stored(random_bytes("x", size), lfs=True)})
    with pytest.raises(ArtifactError, match="found other bytes on the hub"):
        fetcher(tmp_path).fetch(f"hf:{REPO}")


def test_without_network_and_without_a_copy_it_says_both(
    hub: Hub, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    for name in (f"hf:{REPO}", f"hf:{REPO}@{hub.repositories[REPO].head.oid}"):
        with pytest.raises(ArtifactError, match=r"expected a copy in .*, found none, and HF_HUB_OFFLINE is set"):
            fetcher(tmp_path).fetch(name)


def test_a_cache_that_cannot_be_written_is_named(hub: Hub, published: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ArtifactError, match=r"the cache cannot be used: .*; set ARTIFACT_CACHE_DIR"):
        fetcher(tmp_path).fetch(f"hf:{REPO}")


def test_an_artifact_for_another_machine_is_refused_before_its_weights(
    hub: Hub, published: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="expected a machine without a GPU, found sm90"):
        fetcher(tmp_path, H100).fetch(f"hf:{REPO}")
    assert not hub.requests("GET", "^/storage/")


# Signatures


def test_an_unsigned_or_strangely_signed_artifact_is_refused_before_its_weights(hub: Hub, tmp_path: Path) -> None:
    secret, public = key_pair(tmp_path)
    _, stranger = key_pair(tmp_path, "stranger")
    folder = cpu_artifact(tmp_path / "artifact")
    put(folder)
    with pytest.raises(ArtifactError, match=r"expected a signed artifact, found no model\.sig"):
        fetcher(tmp_path, public_key=public).fetch(f"hf:{REPO}")
    put(folder, secret)
    with pytest.raises(ArtifactError, match="expected a signature made with the key of"):
        fetcher(tmp_path, public_key=stranger).fetch(f"hf:{REPO}")
    assert not hub.requests("GET", "^/storage/")
    fetched = fetcher(tmp_path, public_key=public).fetch(f"hf:{REPO}")
    assert verify.check_artifact(fetched, CPU, public_key=public).chat


# Engines for several GPUs


def test_each_gpu_gets_its_own_engine(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, public = key_pair(tmp_path)
    hopper, ampere = engine_artifact(tmp_path / "hopper", H100), engine_artifact(tmp_path / "ampere", A100)
    put(hopper, secret)
    put(ampere, secret)
    hub.seen.clear()
    first = fetcher(tmp_path, H100, public_key=public).fetch(f"hf:{REPO}")
    assert not [seen for seen in hub.requests("GET", "/resolve/") if "sm80" in seen.path]
    assert contents(first) == contents(hopper)
    second = fetcher(tmp_path, A100, public_key=public).fetch(f"hf:{REPO}")
    assert contents(second) == contents(ampere)
    assert contents(first) == contents(hopper)
    for machine, folder in ((H100, first), (A100, second)):
        assert verify.check_artifact(folder, machine, public_key=public).engine == "trt"
    offline(monkeypatch)
    assert fetcher(tmp_path, H100).fetch(f"hf:{REPO}") == first
    assert fetcher(tmp_path, A100).fetch(f"hf:{REPO}") == second


def test_as_many_gpus_as_shall_share_the_model_get_the_engine_for_them(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = gpu_machine(90, "NVIDIA H100 80GB HBM3", gpus=2)
    one, two = engine_artifact(tmp_path / "one", H100), engine_artifact(tmp_path / "two", pair, tensor=2)
    put(one)
    put(two)
    shared, alone = Sharing(tensor=2), Sharing(tensor=1)
    ends = {
        "one GPU": (H100, AS_BUILT, one),
        "one of two": (pair, AS_BUILT, one),
        "one is asked for": (pair, alone, one),
        "two are asked for": (pair, shared, two),
    }
    with pytest.raises(ArtifactError, match=r"expected an engine for sm90_.*_tp4, found sm90_.*, sm90_.*_tp2"):
        replace(fetcher(tmp_path / "empty", pair), sharing=Sharing(tensor=4)).fetch(f"hf:{REPO}")
    for going in ("from the hub", "from the cache"):
        for name, (machine, sharing, expected) in ends.items():
            found = replace(fetcher(tmp_path, machine), sharing=sharing).fetch(f"hf:{REPO}")
            assert contents(found) == contents(expected), (going, name)
            assert verify.check_artifact(found, machine, sharing=sharing).chat
        offline(monkeypatch)


def test_a_gpu_without_an_engine_is_told_which_exist_and_how_to_build_one(hub: Hub, tmp_path: Path) -> None:
    put(engine_artifact(tmp_path / "hopper", H100))
    put(engine_artifact(tmp_path / "ampere", A100))
    with pytest.raises(ArtifactError) as refused:
        fetcher(tmp_path, gpu_machine(89, "NVIDIA L40S")).fetch(f"hf:{REPO}")
    told = str(refused.value)
    assert "expected an engine for sm89_trt-llm-1.2.1_cuda13.0" in told
    assert "found sm80_trt-llm-1.2.1_cuda13.0, sm90_trt-llm-1.2.1_cuda13.0" in told
    assert "yap-pipeline run --trt" in told


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("hf:acme/llama", "acme/llama", "main"),
        ("hf:acme/llama@v1.0", "acme/llama", "v1.0"),
        ("hf:acme/llama@refs/pr/1", "acme/llama", "refs/pr/1"),
    ],
)
def test_a_reference_names_a_repository_and_a_revision(text: str, repo: str, revision: str) -> None:
    assert Reference.parse(text) == Reference(repo, revision)
    assert str(Reference.parse(text)) == f"hf:{repo}@{revision}"
