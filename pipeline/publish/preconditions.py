"""The preconditions of publishing, checked all at once and before any work.

No flag, no upload: these checks run only when the command line asked to publish. The variables alone do nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from pipeline import settings as environment_settings
from pipeline.plan import BuildPlan, ChatPlan
from pipeline.problem import Problem
from pipeline.publish.reports.validation_status import validation_status
from pipeline.publish.sign import key_problem
from pipeline.source import SourceFacts, licenses
from pipeline.stages.stage import StageError
from runtime import artifact
from runtime.artifact import ArtifactError, BuildMetadata, Source, hashes, hub, hub_client, signature
from runtime.artifact.hub import TokenError

REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Words that examples are made of; a namespace or a name that is one of them was copied, not chosen.
PLACEHOLDERS = frozenset(
    {
        *("org", "my-org", "organization", "namespace", "user", "username", "example", "example-org"),
        *("repo", "my-repo", "repo-name", "repository", "name", "model", "model-name", "placeholder"),
        *("changeme", "change-me", "todo", "foo", "bar", "xxx"),
    }
)
WRITE_ROLES = frozenset({"admin", "write", "contributor"})
PUBLISHING = "publishing"


@dataclass(frozen=True, slots=True)
class Destination:
    """The repository that an artifact goes to.

    Attributes:
        repo: `org/name`.
        private: whether the repository must be private.
        token: may write there.
    """

    repo: str
    private: bool
    token: SecretStr


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A source model, as far as publishing asks.

    Attributes:
        role: the variable that names it, such as `CHAT_MODEL`.
        name: what the metadata calls it.
        license: none where it is unknown.
        prequantized: whether it came quantized.
        license_name: of a licence that is `other`.
    """

    role: str
    name: str
    license: str | None
    prequantized: bool = False
    license_name: str | None = None


def source_models(holder: BuildPlan | BuildMetadata) -> tuple[SourceModel, ...]:
    """Return the models that a plan or an artifact is made of."""
    found = []
    for role, source, prequantized in _sources(holder):
        name = source.name if isinstance(source, SourceFacts) else source.repo
        found.append(SourceModel(role, name, source.license, prequantized, source.license_name))
    return tuple(found)


def _sources(holder: BuildPlan | BuildMetadata) -> Iterator[tuple[str, SourceFacts | Source, bool]]:
    """The models of a plan or an artifact, each with its role and whether it came quantized."""
    if holder.chat:
        chat = holder.chat
        came = chat.prequantized is not None if isinstance(chat, ChatPlan) else chat.quantization.prequantized
        yield "CHAT_MODEL", chat.source, came
    if holder.tool:
        yield "TOOL_MODEL", holder.tool.source, False


def check_destination(
    models: Sequence[SourceModel], sign_key: Path | None, environment: Mapping[str, str] = os.environ
) -> tuple[Destination | None, list[Problem]]:
    """Check everything that publishing needs; the hub is asked who the token belongs to.

    Returns:
        the destination, none when something is wrong; and every problem.
    """
    values = environment_settings.load(environment).settings
    problems = [*_source_problems(models)]
    if sign_key and (problem := key_problem(sign_key)):
        problems.append(problem)
    repo = (values.hf_push_repo_id or "").strip()
    repo_problem = repo_id_problem(repo)
    if repo_problem:
        problems.append(repo_problem)
    private = values.hf_push_private.strip()
    if private not in {"0", "1"}:
        problems.append(Problem("HF_PUSH_PRIVATE", "0 or 1", repr(private), "1 keeps the repository to yourself"))
    token, token_problem = _token(environment)
    if token is None and token_problem is None:
        # A job's token is made for one repository and has no account of its own to ask about.
        token, token_problem = _exchanged_token(environment["HF_OIDC_RESOURCE"], repo)
    elif token and repo_problem is None:
        token_problem = _access_problem(token, repo)
    if token_problem:
        problems.append(token_problem)
    if problems or token is None:
        return None, problems
    return Destination(repo, private == "1", token), []


def check_artifact(folder: Path, *, signing: bool) -> tuple[BuildMetadata | None, list[Problem]]:
    """Check that an artifact may be published: validated, unchanged, and with a signature that still fits.

    Args:
        signing: it will be signed anew, so that an old signature does not matter.
    """
    again = f"run `yap-pipeline validate {folder}`"
    try:
        metadata = artifact.read(folder)
        if not (status := validation_status(metadata)).valid:
            return metadata, [Problem("ARTIFACT", "an artifact that passed its gates", str(status), again)]
        hashes.verify_files(folder, metadata)
        if not signing and (folder / signature.SIGNATURE_NAME).exists():
            signature.check_subject(folder, metadata)
    except ArtifactError as error:
        return None, [Problem("ARTIFACT", "an artifact whose files are as they were validated", str(error))]
    return metadata, []


def repo_id_problem(repo: str) -> Problem | None:
    """Return what is wrong with the name of a repository; none when nothing is."""
    expected = "a repository such as acme/llama-8b-awq"
    if not repo:
        return Problem("HF_PUSH_REPO_ID", expected, "nothing", "set it to a repository of yours")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
        well_formed = REPO_ID.fullmatch(repo) is not None
    except HFValidationError:
        well_formed = False
    if not well_formed:
        return Problem("HF_PUSH_REPO_ID", expected, repr(repo))
    if any(part.lower() in PLACEHOLDERS or part.lower().startswith(("your-", "your_")) for part in repo.split("/")):
        return Problem("HF_PUSH_REPO_ID", expected, f"the placeholder {repo}", "set it to a repository of yours")
    return None


def _source_problems(models: Sequence[SourceModel]) -> list[Problem]:
    problems = []
    for model in models:
        if model.prequantized:
            problems.append(
                Problem(
                    PUBLISHING,
                    "a model that was quantized here",
                    f"{model.name}, which came quantized",
                    "it is its author's to publish; serve the artifact from its folder",
                )
            )
        if problem := _license_problem(model):
            problems.append(problem)
    return problems


def _license_problem(model: SourceModel) -> Problem | None:
    """Return why a model's licence keeps it from being published: the hub refuses a card that names an unknown one."""
    matter = "the front matter of its README.md"
    if not model.license or licenses.hub_id(model.license) == licenses.UNKNOWN:
        found, next_step = f"none for {model.name}", f"add `license:` to {matter}"
        return Problem(model.role, "a source with a known licence", found, next_step)
    known = licenses.hub_id(model.license)
    if known is None:
        next_step = f"name its id, or `license: other` with `license_name` and `license_link`, in {matter}"
        return Problem(
            model.role, "a licence by the id that the hub has for it", f"{model.license!r} for {model.name}", next_step
        )
    if known == licenses.OTHER and not model.license_name:
        next_step = f"add `license_name` and `license_link` to {matter}"
        return Problem(model.role, "the name of a licence that is `other`", f"none for {model.name}", next_step)
    return None


def _token(environment: Mapping[str, str]) -> tuple[SecretStr | None, Problem | None]:
    """Return the token that is set, or what is wrong with it; neither when a job's identity is exchanged for one."""
    try:
        token = hub.token_of(environment)
    except TokenError as error:
        return None, Problem(error.variables, error.expected, error.found)
    if token is None and not environment.get("HF_OIDC_RESOURCE"):
        return None, Problem(
            "HF_TOKEN",
            "a token with write access",
            "none",
            "set HF_TOKEN or HUGGINGFACE_HUB_TOKEN, or name a file that holds it in HF_TOKEN_FILE",
        )
    return token, None


def _exchanged_token(resource: str, repo: str) -> tuple[SecretStr | None, Problem | None]:
    """Return a short-lived token for a CI job that proved who it is (OIDC); the client does the exchange."""
    from huggingface_hub import __version__, get_token

    if resource != repo:
        return None, Problem("HF_OIDC_RESOURCE", f"{repo or 'a repository'}, as HF_PUSH_REPO_ID says", resource)
    if not (refused := hub_client.token_exchange_errors()):
        expected, found = "a hub client that exchanges a job's identity (1.x)", f"huggingface_hub {__version__}"
        return None, Problem("HF_OIDC_RESOURCE", expected, found, "set HF_TOKEN instead")
    expected = "a token in exchange for this job's identity"
    try:
        text = get_token()
    except hub_client.failures(*refused) as error:
        return None, Problem("HF_OIDC_RESOURCE", expected, hub.reason(error))
    return (SecretStr(text), None) if text else (None, Problem("HF_OIDC_RESOURCE", expected, "none"))


def renewed(destination: Destination, environment: Mapping[str, str] = os.environ) -> Destination:
    """Return a destination whose token is good now: one made for a job lasts an hour, and a run may take longer.

    Raises:
        StageError: the job's identity buys no token any more.
    """
    token, problem = _token(environment)
    if token is not None or problem is not None:
        return destination
    token, problem = _exchanged_token(environment["HF_OIDC_RESOURCE"], destination.repo)
    if token is None:
        found = f"expected {problem.expected}, found {problem.found}" if problem else "no token"
        raise StageError("push", found, destination.repo, "the artifact is kept; push it with `yap-pipeline push`")
    return replace(destination, token=token)


def _access_problem(token: SecretStr, repo: str) -> Problem | None:
    """Return why a token may not write to a repository, as far as the hub says before it is tried."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    hub_client.set_timeouts()
    try:
        account = hub.with_retries(lambda: HfApi(token=token.get_secret_value()).whoami(), lambda line: None, tries=3)
    except OfflineModeIsEnabled:
        return Problem("HF_HUB_OFFLINE", "0 for an upload", "1")
    except hub_client.failures() as error:
        where = HfApi().endpoint
        if hub.status_of(error) == 401:
            return Problem("HF_TOKEN", f"a token that {where} accepts", "one that it refuses", "make a new one")
        return Problem("HF_TOKEN", f"an answer from {where} about it", hub.reason(error))
    return write_problem(account, repo)


def write_problem(account: Mapping[str, Any], repo: str) -> Problem | None:
    """Return why an account's token may not write to a repository; none when it may.

    `account` is the hub's answer to `whoami`.
    """
    namespace = repo.partition("/")[0]
    token = account.get("auth", {}).get("accessToken", {})
    role, remedy = token.get("role"), "make one with write access in the hub's settings"
    if role == "fineGrained":
        scoped = token.get("fineGrained", {}).get("scoped", ())
        granted = {entry["entity"].get("name"): entry.get("permissions", ()) for entry in scoped}
        if not any("repo.write" in granted.get(name, ()) for name in (namespace, repo)):
            return Problem("HF_TOKEN", f"a token that may write to {repo}", "a fine-grained one without it", remedy)
        return None
    if role not in {"write", "admin"}:
        return Problem("HF_TOKEN", "a token with write access", f"one with the role {role}", remedy)
    if namespace == account.get("name"):
        return None
    roles = {org.get("name"): org.get("roleInOrg") for org in account.get("orgs", ())}
    if roles.get(namespace) in WRITE_ROLES:
        return None
    found = f"the role {roles[namespace]} in it" if namespace in roles else f"a token of {account.get('name')}"
    return Problem("HF_PUSH_REPO_ID", f"a namespace that the token may write to, not {namespace}", found)
