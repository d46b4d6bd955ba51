"""The endpoints that `huggingface_hub` calls to publish to and to fetch from a plain LFS hub.

Written after the client's own code: `hf_api.py` (whoami, create, tree, revision, commit), `_commit_api.py` (preupload,
ndjson commit), `lfs.py` (batch, single part, several parts with completion, verify), `file_download.py` (resolve).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

from tests.hub.store import Account, Commit, Repository, Stored, git_blob_id, is_lfs

if TYPE_CHECKING:
    from tests.hub.server import Hub


@dataclass(frozen=True, slots=True)
class Call:
    """A request, read whole."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    token: str | None

    @property
    def json(self) -> Any:
        """The body, parsed as JSON."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """Return one header, in any case."""
        return next((value for key, value in self.headers.items() if key.lower() == name.lower()), None)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: a status, headers, and bytes or JSON."""

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """A request is refused with this status, as the public hub does it."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def answer(self) -> Answer:
        """Return the response, with the hub's own error headers."""
        headers = {"X-Error-Message": self.message}
        if self.code:
            headers["X-Error-Code"] = self.code
        return Answer({"error": self.message}, self.status, headers)


Endpoint = Callable[["Hub", Call, "re.Match[str]"], Answer]
ROUTES: list[tuple[str, re.Pattern[str], Endpoint]] = []

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


def route(methods: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Register the function below for a path."""

    def add(endpoint: Endpoint) -> Endpoint:
        ROUTES.extend((method, re.compile(pattern), endpoint) for method in methods.split())
        return endpoint

    return add


def answer(hub: Hub, call: Call) -> Answer:
    """Find the endpoint of a request, and return its response."""
    for method, pattern, endpoint in ROUTES:
        if method == call.method and (match := pattern.fullmatch(call.path)):
            return endpoint(hub, call, match)
    raise Refusal(404, f"{call.method} {call.path} is no endpoint of this hub")


# Who may do what


def account_of(hub: Hub, call: Call) -> Account | None:
    """Return the caller's account; none for a stranger."""
    if call.token is None:
        return None
    if call.token not in hub.accounts:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return hub.accounts[call.token]


def readable(hub: Hub, call: Call, name: str) -> Repository:
    """Return a repository that the caller may read; one that it may not looks as if it were missing."""
    account, repository = account_of(hub, call), hub.repositories.get(name)
    if repository is None or (repository.private and not (account and account.may_read(name))):
        raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
    if repository.gated and not (account and account.may_write(name)):
        raise Refusal(403, "Access to this model is restricted", "GatedRepo")
    return repository


def writable(hub: Hub, call: Call, name: str) -> Repository:
    """Return a repository that the caller may write to."""
    repository, account = readable(hub, call, name), account_of(hub, call)
    if account is None or not account.may_write(name):
        raise Refusal(403, "you have no write access to this repository")
    return repository


def commit_at(repository: Repository, revision: str) -> Commit:
    """Return the commit that a revision names."""
    found = repository.at(revision)
    if found is None:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return found


# Accounts and repositories


@route("GET", "/api/whoami-v2")
def whoami(hub: Hub, call: Call, _: re.Match[str]) -> Answer:
    account = account_of(hub, call)
    if account is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return Answer(account.whoami())


@route("POST", "/oauth/token")
def exchange(hub: Hub, call: Call, _: re.Match[str]) -> Answer:
    """Exchange a CI job's identity for a token that may write to one repository (RFC 8693)."""
    wanted = call.json
    if wanted["subject_token"] != "a-trusted-job":
        raise Refusal(403, "this job is no trusted publisher")
    token = f"hf_jwt_{len(hub.accounts)}"
    hub.accounts[token] = Account("job", "fineGrained", scoped={wanted["resource"]: ("repo.write",)})
    return Answer({"access_token": token, "token_type": "bearer", "expires_in": 3600})


@route("POST", "/api/repos/create")
def create(hub: Hub, call: Call, _: re.Match[str]) -> Answer:
    account, wanted = account_of(hub, call), call.json
    if account is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    name = f"{wanted.get('organization') or account.name}/{wanted['name']}"
    if not account.may_write(name):
        raise Refusal(403, "You don't have the rights to create a model under this namespace")
    url = f"{hub.url}/{name}"
    if name in hub.repositories:
        return Answer({"error": "You already created this model repo", "url": url}, 409)
    # The client before 1.0 asks for `private`, later ones for a visibility.
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    hub.repositories[name] = Repository(name, private=private)
    return Answer({"url": url, "name": name, "id": "1"})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: Hub, call: Call, _: re.Match[str]) -> Answer:
    import yaml

    content = call.json["content"]
    matter = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    try:
        fields = yaml.safe_load(matter[1]) if matter else None
    except yaml.YAMLError as error:
        return Answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
    errors = []
    if not isinstance(fields, dict):
        errors.append({"message": "empty or missing yaml metadata in repo card"})
    else:
        bases = fields.get("base_model", [])
        wrong = [
            base
            for base in ([bases] if isinstance(bases, str) else bases)
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", base)
        ]
        errors.extend({"message": f'"base_model" must be a model id, found {base}'} for base in wrong)
        if not re.fullmatch(r"[a-z0-9.-]+", str(fields.get("license", ""))):
            errors.append({"message": f'"license" must be one of the known ones, found {fields.get("license")}'})
    return Answer({"errors": errors, "warnings": []}, 400 if errors else 200)


@route("GET", f"/api/models/{REPO}(?:/revision/(?P<revision>.+))?")
def info(hub: Hub, call: Call, match: re.Match[str]) -> Answer:
    repository = readable(hub, call, match["repo"])
    commit = commit_at(repository, match["revision"] or "main")
    with_blobs = call.query.get("blobs", "").lower() in {"true", "1"}
    siblings = [
        {"rfilename": path, **(blob(stored) if with_blobs else {})} for path, stored in sorted(commit.files.items())
    ]
    card = commit.files.get("README.md")
    return Answer(
        {
            "id": repository.name,
            "sha": commit.oid,
            "private": repository.private,
            "siblings": siblings,
            "tags": [],
            "cardData": front_matter(card.content.decode()) if card else None,
        }
    )


def front_matter(text: str) -> Any:
    """Return what a card says at its head; none where it says nothing."""
    import yaml

    matter = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return yaml.safe_load(matter[1]) if matter else None


def blob(stored: Stored) -> dict[str, object]:
    """Return what the hub adds for each file when it is asked for blobs."""
    size = len(stored.content)
    found: dict[str, object] = {"size": size, "blobId": stored.blob_id}
    return {**found, "lfs": {"sha256": stored.sha256, "size": size, "pointerSize": 130}} if stored.lfs else found


@route("GET", f"/api/models/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def tree(hub: Hub, call: Call, match: re.Match[str]) -> Answer:
    """List files only, in pages; the client follows the `Link` header."""
    commit = commit_at(readable(hub, call, match["repo"]), match["revision"])
    folder = (match["folder"] or "").rstrip("/")
    paths = [path for path in sorted(commit.files) if not folder or path.startswith(folder + "/")]
    if folder and not paths:
        raise Refusal(404, f"{folder} does not exist on this revision", "EntryNotFound")
    start = int(call.query.get("cursor", 0))
    page = paths[start : start + hub.page_size]
    headers = {}
    if start + hub.page_size < len(paths):
        more = f"{hub.url}{call.path}?recursive=true&cursor={start + hub.page_size}"
        headers["Link"] = f'<{more}>; rel="next"'
    return Answer([entry(path, commit.files[path]) for path in page], headers=headers)


def entry(path: str, stored: Stored) -> dict[str, object]:
    """Describe one file of a tree."""
    size = len(stored.content)
    found: dict[str, object] = {"type": "file", "path": path, "size": size, "oid": stored.blob_id}
    if stored.lfs:
        found["lfs"] = {"oid": stored.sha256, "size": size, "pointerSize": 130}
    return found


# Publishing


@route("POST", f"/api/models/{REPO}/preupload/(?P<revision>.+)")
def preupload(hub: Hub, call: Call, match: re.Match[str]) -> Answer:
    head = commit_at(writable(hub, call, match["repo"]), match["revision"]).files
    files = []
    for file in call.json["files"]:
        there = head.get(file["path"])
        oid = (there.sha256 if there.lfs else there.blob_id) if there else None
        mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
        files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Answer({"files": files})


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def batch(hub: Hub, call: Call, match: re.Match[str]) -> Answer:
    writable(hub, call, match["repo"])
    objects = []
    for wanted in call.json["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        found: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in hub.objects:
            upload: dict[str, Any] = {"href": f"{hub.storage}/lfs/{oid}"}
            if size > hub.part_size:
                count = ceil(size / hub.part_size)
                parts = {str(n): f"{hub.storage}/lfs/{oid}/parts/{n}" for n in range(1, count + 1)}
                upload = {
                    "href": f"{hub.url}/lfs/{oid}/complete",
                    "header": {"chunk_size": str(hub.part_size), **parts},
                }
            found["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/lfs/{oid}/verify"}}
        objects.append(found)
    return Answer({"transfer": "basic", "objects": objects})


@route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
def put_whole(hub: Hub, call: Call, match: re.Match[str]) -> Answer:
    store(hub, match["oid"], call.body)
    return Answer(headers={"ETag": '"whole"'})


@route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/parts/(?P<number>\d+)")
def put_part(hub: Hub, call: Call, match: re.Match[str]) -> Answer:
    hub.parts[match["oid"], int(match["number"])] = call.body
    return Answer(headers={"ETag": etag(call.body)})


@route("POST", "/lfs/(?P<oid>[0-9a-f]{64})/complete")
def complete(hub: Hub, call: Call, match: re.Match[str]) -> Answer:
    content = b""
    for part in call.json["parts"]:
        held = hub.parts.get((match["oid"], part["partNumber"]), b"")
        if etag(held) != part["etag"]:
            raise Refusal(400, f"part {part['partNumber']} is not the one that was uploaded")
        content += held
    store(hub, match["oid"], content)
    return Answer({})


@route("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify")
def verify(hub: Hub, call: Call, match: re.Match[str]) -> Answer:
    if len(hub.objects.get(match["oid"], b"")) != call.json["size"]:
        raise Refusal(422, "the object has another size")
    return Answer({})


def etag(content: bytes) -> str:
    """Return a part's ETag as the object storage makes it."""
    return f'"{hashlib.md5(content).hexdigest()}"'  # noqa: S324


def store(hub: Hub, oid: str, content: bytes) -> None:
    """Keep an LFS object whose SHA-256 is its name."""
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refusal(400, "the content does not have this SHA-256")
    hub.objects[oid] = content


@route("POST", f"/api/models/{REPO}/commit/(?P<revision>.+)")
def commit(hub: Hub, call: Call, match: re.Match[str]) -> Answer:
    """Commit all lines of the request or none."""
    repository = writable(hub, call, match["repo"])
    if match["revision"] != "main":
        raise Refusal(404, f"Invalid rev id: {match['revision']}", "RevisionNotFound")
    files, title = dict(repository.head.files), ""
    for line in map(json.loads, call.body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            title = value["summary"]
            if value.get("parentCommit", repository.head.oid) != repository.head.oid:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        elif line["key"] == "file":
            files[value["path"]] = Stored(base64.b64decode(value["content"]), lfs=False)
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.objects:
                raise Refusal(400, f"the LFS object of {value['path']} was not uploaded")
            files[value["path"]] = Stored(hub.objects[value["oid"]], lfs=True)
        elif line["key"] == "deletedFile":
            if value["path"] not in files:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            del files[value["path"]]
        else:
            raise Refusal(400, f"unknown operation {line['key']}")
    made = repository.commit(title, files)
    return Answer(
        {"commitOid": made.oid, "commitUrl": f"{hub.url}/{repository.name}/commit/{made.oid}", "success": True}
    )


# Fetching


@route("GET HEAD", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(hub: Hub, call: Call, match: re.Match[str]) -> Answer:
    found = commit_at(readable(hub, call, match["repo"]), match["revision"])
    headers = {"X-Repo-Commit": found.oid, "Accept-Ranges": "bytes"}
    stored = found.files.get(match["path"])
    if stored is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    if stored.lfs:
        headers |= {
            "X-Linked-Size": str(len(stored.content)),
            "X-Linked-Etag": f'"{stored.sha256}"',
            "Location": f"{hub.storage}/storage/{stored.sha256}",
        }
        hub.objects.setdefault(stored.sha256, stored.content)
        return Answer(status=302, headers=headers)
    headers["ETag"] = f'"{git_blob_id(stored.content)}"'
    return ranged(call, stored.content, headers)


@route("GET HEAD", "/storage/(?P<oid>[0-9a-f]{64})")
def storage(hub: Hub, call: Call, match: re.Match[str]) -> Answer:
    content = hub.objects.get(match["oid"])
    if content is None:
        raise Refusal(404, "no such object")
    return ranged(call, content, {"ETag": f'"{match["oid"]}"', "Accept-Ranges": "bytes"})


def ranged(call: Call, content: bytes, headers: Mapping[str, str]) -> Answer:
    """Return the content, or the part of it that was asked for."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", call.header("Range") or "")
    if asked is None:
        return Answer(content, headers=headers)
    first, last = int(asked[1]), int(asked[2] or len(content) - 1)
    if first >= len(content):
        return Answer(status=416, headers={**headers, "Content-Range": f"bytes */{len(content)}"})
    part = content[first : last + 1]
    return Answer(part, 206, {**headers, "Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"})
