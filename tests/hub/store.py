"""The contents of the hub: accounts, repositories, commits, and LFS objects by their SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

# Suffixes that the public hub's default .gitattributes sends through LFS, as far as artifacts have them.
LFS_SUFFIXES = (".safetensors", ".bin", ".engine", ".model", ".zip")
LFS_THRESHOLD = 10 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        """The SHA-256 of the content, which names the LFS object."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        """Git's own id: of the content, or of the LFS pointer."""
        content = self.content
        if self.lfs:
            oid = f"oid sha256:{self.sha256}\nsize {len(content)}\n"
            content = f"version https://git-lfs.github.com/spec/v1\n{oid}".encode()
        return git_blob_id(content)


def git_blob_id(content: bytes) -> str:
    """Return a SHA-1 over git's header and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - what git uses


def is_lfs(path: str, size: int) -> bool:
    """Tell whether the hub wants a file through LFS."""
    return path.endswith(LFS_SUFFIXES) or size > LFS_THRESHOLD


@dataclass(frozen=True, slots=True)
class Commit:
    """A whole tree at one moment."""

    oid: str
    title: str
    files: Mapping[str, Stored]


@dataclass(slots=True)
class Repository:
    """A model repository with one branch, `main`, and tags."""

    name: str
    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.commits:
            self.commit("initial commit", {".gitattributes": Stored(b"*.safetensors filter=lfs\n", lfs=False)})

    @property
    def head(self) -> Commit:
        """The newest commit of `main`."""
        return self.commits[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """The files that `main` holds now."""
        return {path: stored.content for path, stored in self.head.files.items()}

    def at(self, revision: str) -> Commit | None:
        """Return the commit that a revision names."""
        if revision == "main":
            return self.head
        wanted = self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == wanted), None)

    def commit(self, title: str, files: Mapping[str, Stored]) -> Commit:
        """Append a tree to `main`."""
        listing = "".join(f"{path} {stored.blob_id}\n" for path, stored in sorted(files.items()))
        seed = f"{self.name}\n{len(self.commits)}\n{title}\n{listing}"
        made = Commit(hashlib.sha1(seed.encode()).hexdigest(), title, dict(files))  # noqa: S324
        self.commits.append(made)
        return made

    def put(self, **files: bytes) -> Commit:
        """Commit files as if someone had edited them on the hub; `__` in a name stands for a dot."""
        added = {name.replace("__", "."): Stored(content, lfs=False) for name, content in files.items()}
        return self.commit("edit", {**self.head.files, **added})


@dataclass(frozen=True, slots=True)
class Account:
    """The account that a token belongs to, and what it may do.

    Attributes:
        role: of the token: `write`, `read` or `fineGrained`.
        orgs: organizations, each with the member's role in it.
        scoped: for fine-grained tokens: permissions by user, organization or repository.
    """

    name: str
    role: str = "write"
    orgs: Mapping[str, str] = field(default_factory=dict)
    scoped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def may_write(self, repo: str) -> bool:
        """Tell whether commits to a repository are accepted."""
        namespace = repo.partition("/")[0]
        if self.role == "fineGrained":
            return any("repo.write" in self.scoped.get(name, ()) for name in (namespace, repo))
        return self.role == "write" and (
            namespace == self.name or self.orgs.get(namespace) in {"admin", "write", "contributor"}
        )

    def may_read(self, repo: str) -> bool:
        """Tell whether a private repository is seen."""
        namespace = repo.partition("/")[0]
        return namespace == self.name or namespace in self.orgs or namespace in self.scoped or repo in self.scoped

    def whoami(self) -> dict[str, object]:
        """Return the answer of `/api/whoami-v2`."""
        token: dict[str, object] = {"displayName": "test", "role": self.role}
        if self.role == "fineGrained":
            token["fineGrained"] = {
                "global": [],
                "scoped": [
                    {"entity": {"type": "model" if "/" in name else "org", "name": name}, "permissions": list(granted)}
                    for name, granted in self.scoped.items()
                ],
            }
        return {
            "type": "user",
            "name": self.name,
            "orgs": [{"type": "org", "name": name, "roleInOrg": role} for name, role in self.orgs.items()],
            "auth": {"type": "access_token", "accessToken": token},
        }
