"""A hub that means harm: whatever its metadata and answers name, nothing outside a fetch's own folder is touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import huggingface_hub
import pytest
from pydantic import SecretStr

from pipeline.publish.preconditions import Destination
from pipeline.publish.push import push
from runtime.artifact import METADATA_NAME, ArtifactError, encode, seal_of
from runtime.artifact.fetch import Fetcher
from runtime.artifact.labels import ENGINES_FOLDER, EngineLabel
from runtime.artifact.repository import Reference
from tests.harness.builds.progress import RecordedProgress
from tests.hub import Account, Hub
from tests.hub.artifacts import A100, H100, engine_artifact
from tests.hub.client import configure_client
from tests.hub.store import Repository, Stored

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

REPO, TOKEN = "acme/llama-8b-trt", "hf_writer"
OUTSIDE = ["..", "../..", "trt-llm/engines/..", "/etc", "trt-llm/engines/../../../x", "x/.hidden", "a\\..\\b", "."]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    with Hub(accounts={TOKEN: Account("acme")}) as hub:
        configure_client(monkeypatch, hub, TOKEN)
        push(
            engine_artifact(tmp_path / "made", H100),
            Destination(REPO, True, SecretStr(TOKEN)),
            None,
            RecordedProgress(),
        )
        yield hub.repositories[REPO]
        huggingface_hub.close_session()


def changed(content: bytes, field: str, value: str) -> bytes:
    document = json.loads(content)
    if field == "files":
        document["files"][0]["path"] = value
        listing = "".join("{sha256}  {size}  {path}\n".format(**entry) for entry in document["files"])
        document["digest"] = document["validation"]["digest"] = sha256(listing.encode()).hexdigest()
    else:
        document["chat"][field] = value
    document.pop("seal")
    document["seal"] = seal_of(document)
    return encode(document)


def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "cache", H100, lambda line: None)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("value", OUTSIDE)
@pytest.mark.parametrize("field", ["engine_path", "compile_cache", "files"])
def test_paths_that_leave_the_artifact_are_refused_and_other_commits_stay(
    repository: Repository, tmp_path: Path, field: str, value: str
) -> None:
    fetcher(tmp_path).fetch(f"hf:{REPO}")
    before = everything(tmp_path)
    hostile = Stored(changed(repository.head.files[METADATA_NAME].content, field, value), lfs=False)
    repository.commit("harm", {**repository.head.files, METADATA_NAME: hostile})
    with pytest.raises(ArtifactError, match="a path must stay inside the artifact") as refusal:
        fetcher(tmp_path).fetch(f"hf:{REPO}")
    assert len(str(refusal.value).splitlines()) == 1
    after = everything(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert not any(path.is_relative_to(tmp_path / "cache") for path in tmp_path.rglob("x"))


def test_metadata_in_one_engines_folder_that_name_another_are_refused(repository: Repository, tmp_path: Path) -> None:
    files = dict(repository.head.files)
    label = str(EngineLabel.of(H100))
    other = files[METADATA_NAME].content.replace(label.encode(), str(EngineLabel.of(A100)).encode())
    document = json.loads(other)
    document.pop("seal")
    document["seal"] = seal_of(document)
    files[METADATA_NAME] = Stored(encode(document), lfs=False)  # so that the one of H100's folder is looked at
    files[f"{ENGINES_FOLDER}/{label}/{METADATA_NAME}"] = Stored(encode(document), lfs=False)
    repository.commit("harm", files)
    with pytest.raises(ArtifactError, match=f"expected metadata of the engine {label} in .*, found those of"):
        fetcher(tmp_path).fetch(f"hf:{REPO}")


@pytest.mark.parametrize("commit", ["../../..", "", "main", "a" * 39, "a/b"])
def test_a_commit_that_is_none_names_no_folder(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str
) -> None:
    class Info:
        sha = commit

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info())
    with pytest.raises(ArtifactError, match="expected a commit from the hub"):
        fetcher(tmp_path).fetch(f"hf:{REPO}")


@pytest.mark.parametrize(
    "text", ["hf:../x", "hf:a/..", "hf:a/b@..", "hf:a/b@../c", "hf:a/b@c//d", "hf:./x", "hf:a/b@."]
)
def test_a_reference_is_no_path(text: str) -> None:
    with pytest.raises(ArtifactError, match="expected hf:org/repo@revision"):
        Reference.parse(text)
