"""A repository on the hub at one commit, as the runtime reads it, and its failures in one line each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from runtime.artifact import METADATA_NAME, ArtifactError, hub, hub_client, labels

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf:"


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository on the hub at a commit, tag or branch."""

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}@{self.revision}"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read `hf:org/repo` or `hf:org/repo@revision`.

        Raises:
            ArtifactError: it is something else.
        """
        found = re.fullmatch(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", text)
        if found is None or {"", ".", ".."} & set(re.split("[/@]", text.removeprefix(PREFIX))):
            raise ArtifactError(
                f"ARTIFACT: expected hf:org/repo@revision, found {text!r}; name a repository on the hub"
            )
        return cls(found["repo"], found["revision"] or "main")


@dataclass(frozen=True, slots=True)
class RepositoryReader:
    """Reads the files of a repository at one commit.

    Attributes:
        api: the hub's client, with its address and token.
        reference: what the user named, for messages.
        commit: the commit that it stands for.
    """

    api: HfApi
    reference: Reference
    commit: str

    def url(self, path: str) -> str:
        """The address of a file at this commit."""
        return f"{self.api.endpoint}/{self.reference.repo}/resolve/{self.commit}/{quote(path)}"

    def headers(self) -> dict[str, str]:
        """Headers of a request, with the token; the client drops that where a redirect leaves the hub."""
        return hub_client.headers(self.api.token)

    def download(self, path: str, folder: Path, report: hub.Report) -> None:
        """Download a small file into a folder, under its bare name."""
        content = hub.with_retries(lambda: hub_client.get(self.url(path), self.headers()), report)
        (folder / path.rpartition("/")[2]).write_bytes(content)

    def download_if_present(self, path: str, folder: Path, report: hub.Report) -> None:
        """Download a small file as `download` does, or nothing where the repository has none."""
        from huggingface_hub.errors import EntryNotFoundError

        try:
            self.download(path, folder, report)
        except EntryNotFoundError:
            return

    def engine_labels(self, report: hub.Report) -> list[str]:
        """Labels of the compiled engines that have metadata of their own."""
        from huggingface_hub.errors import EntryNotFoundError

        def listing() -> list[str]:
            folder = labels.ENGINES_FOLDER
            entries = self.api.list_repo_tree(self.reference.repo, folder, recursive=True, revision=self.commit)
            paths = [Path(entry.path).relative_to(folder) for entry in entries]
            return sorted(path.parts[0] for path in paths if path.name == METADATA_NAME and len(path.parts) == 2)

        try:
            return hub.with_retries(listing, report)
        except EntryNotFoundError:
            return []


def named_on_hub(text: str) -> bool:
    """Whether ARTIFACT names a repository rather than a folder."""
    return text.startswith(PREFIX)


@contextmanager
def hub_errors_translated(reference: Reference) -> Iterator[None]:
    """Turn every way in which the hub can fail into one line."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except hub.TokenError as error:
        raise ArtifactError(str(error)) from None
    except OfflineModeIsEnabled:
        raise ArtifactError(
            f"{reference}: expected a copy in the cache, found none, and HF_HUB_OFFLINE is set; "
            "fetch it once with the network, or name a folder"
        ) from None
    except GatedRepoError:
        raise ArtifactError(
            f"{reference}: expected a repository that this token may read, found a gated one; "
            "accept its terms on the hub"
        ) from None
    except RevisionNotFoundError:
        raise ArtifactError(
            f"{reference}: expected the revision {reference.revision}, found none of that name; "
            "name a commit, tag or branch of the repository"
        ) from None
    except RepositoryNotFoundError:
        raise ArtifactError(
            f"{reference}: expected a repository that this token may read, found none; check its name, and HF_TOKEN "
            "when it is private"
        ) from None
    except EntryNotFoundError:
        raise ArtifactError(
            f"{reference}: expected an artifact with {METADATA_NAME}, found a repository that is not whole; "
            "publish one with `yap-pipeline push`"
        ) from None
    except hub_client.http_errors() as error:
        raise ArtifactError(f"{reference}: the hub: {hub.reason(error)}; {_remedy(error)}") from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ArtifactError(
            f"{reference}: the cache cannot be used: {error.strerror or error}{where}; "
            "set ARTIFACT_CACHE_DIR to a folder that can be written to"
        ) from error


def _remedy(error: BaseException) -> str:
    status = hub.status_of(error)
    if status in {401, 403}:
        return "set HF_TOKEN to a token that may read it"
    return "try again, or name a folder"
