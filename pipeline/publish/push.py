"""Pushes an artifact to the hub: one commit on `main` that appears whole or not at all.

Large files go to the hub first, where nobody sees them; the commit that names them comes last, and the last file in it
is `build_metadata.json`. So whatever fails on the way, the repository is what it was, and what was uploaded is found
there by the next try. On a hub with Xet storage, the client sends only the chunks that are missing, even of a file that
was cut off; on a plain LFS hub (`HF_HUB_DISABLE_XET=1`) it goes on with the first file that is not whole.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.progress import Progress
from pipeline.publish import model_card
from pipeline.publish.preconditions import Destination
from pipeline.publish.remote_repository import Changes, RemoteRepository, changes_to_push, mismatch, read_repository
from pipeline.publish.sign import sign
from pipeline.stages.stage import StageError
from runtime import artifact
from runtime.artifact import CARD_NAME, METADATA_NAME, ArtifactError, BuildMetadata, hashes, hub, hub_client, signature

if TYPE_CHECKING:
    from huggingface_hub import HfApi

BRANCH = "main"
NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Published:
    """An artifact on the hub.

    Attributes:
        repo: `org/name`.
        url: the repository's page.
        commit: the commit that holds the artifact.
        sent: files that this push changed; 0 when the repository held it all.
        unchanged: files that were there already and were not sent.
    """

    repo: str
    url: str
    commit: str
    sent: int
    unchanged: int


def push(folder: Path, destination: Destination, sign_key: Path | None, progress: Progress) -> Published:
    """Upload a validated artifact, signed first where a key is given.

    Raises:
        StageError: it could not be published; the artifact stays, and the message says how to go on.
    """
    again = retry_command(folder, sign_key)
    try:
        if sign_key:
            progress.step("push: signing")
            metadata = sign(folder, sign_key)
        else:
            metadata = artifact.read(folder)
            hashes.verify_files(folder, metadata)
    except ArtifactError as error:
        raise StageError("push", str(error), "", f"then run `{again}`") from error
    remedy = f"the artifact stays at {folder}; go on with `{again}`"
    try:
        return hub.with_retries(lambda: _publish(folder, metadata, destination, progress), progress.step)
    except StageError as error:
        raise StageError("push", error.what, error.where, f"{error.next_step}; {remedy}") from error
    except Exception as error:
        # The client raises what its transports raise (httpx, hf_xet, its own); all of it ends in the same advice.
        raise StageError("push", f"the hub: {hub.reason(error)}", destination.repo, remedy) from error


def retry_command(folder: Path, sign_key: Path | None) -> str:
    """Return the exact command that continues a push that failed."""
    words = ["yap-pipeline", "push", str(folder)]
    return shlex.join([*words, "--sign-key", str(sign_key)] if sign_key else words)


def _publish(folder: Path, metadata: BuildMetadata, destination: Destination, progress: Progress) -> Published:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    hub_client.set_timeouts()
    api = HfApi(token=destination.token.get_secret_value())
    repo = destination.repo
    progress.step(f"push: looking at {repo}")
    api.create_repo(repo, private=destination.private, exist_ok=True)
    remote = read_repository(api, repo, BRANCH)
    if destination.private and not remote.private:
        raise StageError(
            "push",
            "expected a private repository, found a public one",
            repo,
            "make it private or set HF_PUSH_PRIVATE=0",
        )
    changes = changes_to_push(folder, metadata, remote, documents(folder, metadata, repo, remote))
    total = len(metadata.files)
    if not changes.sends and not changes.deletes:
        progress.step(f"push: {repo} holds all of it already")
        return _published(api, repo, remote.commit, changes, total)
    size = sum(entry.size for entry in changes.files)
    progress.step(f"push: sending {len(changes.files)} of {total} files, {size / 2**20:,.1f} MiB")
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(path_in_repo=path) for path in changes.deletes
    ]
    for entry in changes.files:
        added = CommitOperationAdd(path_in_repo=entry.path, path_or_fileobj=str(folder / entry.path))
        # Known, and compared with the disk a moment ago: the client need not read the file once more to hash it.
        added.upload_info.sha256 = bytes.fromhex(entry.sha256)
        operations.append(added)
    for path, content in changes.documents.items():
        operations.append(CommitOperationAdd(path_in_repo=path, path_or_fileobj=content))
    try:
        made = api.create_commit(
            repo, operations, commit_message=commit_message(metadata), revision=BRANCH, parent_commit=remote.commit
        )
    except ConnectionError:
        # The client takes every hub for one with Xet storage unless told otherwise, and tells in prose what went wrong.
        if _without_xet(api, repo):
            expected = "expected a hub with Xet storage, found a plain LFS hub"
            raise StageError("push", expected, api.endpoint, "set HF_HUB_DISABLE_XET=1") from None
        raise
    progress.step("push: comparing what the hub holds now")
    if difference := mismatch(metadata, read_repository(api, repo, made.oid)):
        raise StageError("push", f"the commit does not hold what was sent: {difference}", repo, "look at it")
    return _published(api, repo, made.oid, changes, total)


def _without_xet(api: HfApi, repo: str) -> bool:
    """Whether the hub is one that knows no Xet storage: it has no such page as where the client gets its token."""
    url = f"{api.endpoint}/api/models/{repo}/xet-write-token/{BRANCH}"
    try:
        hub_client.get(url, hub_client.headers(api.token))
    except hub_client.failures() as error:
        return hub.status_of(error) == NOT_FOUND
    return False


def _published(api: HfApi, repo: str, commit: str, changes: Changes, total: int) -> Published:
    return Published(repo, f"{api.endpoint}/{repo}", commit, changes.sends, total - len(changes.files))


def commit_message(metadata: BuildMetadata) -> str:
    """Return the message of the commit that publishes an artifact."""
    what = metadata.chat.quantization.method if metadata.chat else "classifier"
    gpus = metadata.chat.limits.gpus if metadata.chat else 1
    where = f" for {f'{gpus} × ' if gpus > 1 else ''}sm{metadata.platform.sm}" if metadata.platform.sm else ""
    return f"Publish {metadata.lane} {what}{where}, digest {metadata.digest[:12]}"


def documents(folder: Path, metadata: BuildMetadata, repo: str, remote: RemoteRepository) -> Mapping[str, bytes]:
    """Return the small files beside the listed ones, in the order of the commit: card, signature, metadata last.

    A compiled engine's own metadata and signature lie in its folder too, so that they outlive a push from another GPU.
    """
    sealed = (folder / METADATA_NAME).read_bytes()
    signed = folder / signature.SIGNATURE_NAME
    others = [entry for label, entry in remote.engines.items() if label != artifact.engine_label(metadata)]
    made: dict[str, bytes] = {CARD_NAME: model_card.card(metadata, repo, others).encode()}
    prefixes = [f"{metadata.chat.engine_path}/"] if metadata.chat and metadata.chat.engine_path else []
    for prefix in (*prefixes, ""):
        if signed.is_file():
            made[f"{prefix}{signature.SIGNATURE_NAME}"] = signed.read_bytes()
        made[f"{prefix}{METADATA_NAME}"] = sealed
    return made
