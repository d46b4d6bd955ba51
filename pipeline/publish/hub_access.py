"""Access to the hub: the token that is set, or made for a job, and whether it may write to a repository."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from pipeline.problem import Problem
from runtime.artifact import hub, hub_client
from runtime.artifact.hub import TokenError

WRITE_ROLES = frozenset({"admin", "write", "contributor"})


def token_in(environment: Mapping[str, str]) -> tuple[SecretStr | None, Problem | None]:
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


def exchanged_token(resource: str, repo: str) -> tuple[SecretStr | None, Problem | None]:
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


def access_problem(token: SecretStr, repo: str) -> Problem | None:
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
