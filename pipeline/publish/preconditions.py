"""The preconditions of publishing, checked all at once and before any work.

No flag, no upload: these checks run only when the command line asked to publish. The variables alone do nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import SecretStr

from pipeline import settings as environment_settings
from pipeline.plan import BuildPlan, ChatPlan
from pipeline.problem import Problem
from pipeline.publish import hub_access
from pipeline.publish.reports.validation_status import validation_status
from pipeline.publish.sign import key_problem
from pipeline.source import SourceFacts, licenses
from pipeline.stages.stage import StageError
from runtime import artifact
from runtime.artifact import ArtifactError, BuildMetadata, Source, hashes, signature

REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Words that examples are made of; a namespace or a name that is one of them was copied, not chosen.
PLACEHOLDERS = frozenset(
    {
        *("org", "my-org", "organization", "namespace", "user", "username", "example", "example-org"),
        *("repo", "my-repo", "repo-name", "repository", "name", "model", "model-name", "placeholder"),
        *("changeme", "change-me", "todo", "foo", "bar", "xxx"),
    }
)
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
    token, token_problem = hub_access.token_in(environment)
    if token is None and token_problem is None:
        # A job's token is made for one repository and has no account of its own to ask about.
        token, token_problem = hub_access.exchanged_token(environment["HF_OIDC_RESOURCE"], repo)
    elif token and repo_problem is None:
        token_problem = hub_access.access_problem(token, repo)
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


def renewed(destination: Destination, environment: Mapping[str, str] = os.environ) -> Destination:
    """Return a destination whose token is good now: one made for a job lasts an hour, and a run may take longer.

    Raises:
        StageError: the job's identity buys no token any more.
    """
    token, problem = hub_access.token_in(environment)
    if token is not None or problem is not None:
        return destination
    token, problem = hub_access.exchanged_token(environment["HF_OIDC_RESOURCE"], destination.repo)
    if token is None:
        found = f"expected {problem.expected}, found {problem.found}" if problem else "no token"
        raise StageError("push", found, destination.repo, "the artifact is kept; push it with `yap-pipeline push`")
    return replace(destination, token=token)
