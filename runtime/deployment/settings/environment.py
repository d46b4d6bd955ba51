"""Reading the process's environment: once, at start, with every problem reported at once, one line each."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from runtime.artifact import ArtifactError
from runtime.artifact.repository import Reference, named_on_hub
from runtime.deployment.settings.declaring import SettingsError
from runtime.deployment.settings.server import RuntimeSettings
from runtime.host import variables


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def load() -> RuntimeSettings:
    """Read and check the process's environment.

    Raises:
        SettingsError: everything that is wrong.
    """
    read = look()
    if read.problems:
        raise SettingsError(list(read.problems))
    return read.settings


@dataclass(frozen=True, slots=True)
class Environment:
    """What the process's environment says.

    Attributes:
        settings: with defaults in place of what is wrong by itself.
        wrong: the fields that are.
        problems: everything that is wrong, one line each.
    """

    settings: RuntimeSettings
    wrong: frozenset[str]
    problems: tuple[str, ...]


def look() -> Environment:
    """Read the process's environment, whatever is wrong with it."""
    problems = []
    wrong: set[str] = set()
    try:
        settings = RuntimeSettings()
    except ValidationError as error:
        problems = [_problem(entry) for entry in error.errors()]
        # With defaults in place of what was wrong, so that the other checks have their say too.
        fields = RuntimeSettings.model_fields
        wrong = {str(entry["loc"][0]) for entry in error.errors() if entry["loc"]} & fields.keys()
        settings = RuntimeSettings(**{name: fields[name].default for name in wrong})
    problems += _contradictions(settings)
    return Environment(settings, frozenset(wrong), tuple(problems))


def _contradictions(settings: RuntimeSettings) -> list[str]:
    problems = []
    if settings.artifact is None:
        problems.append("ARTIFACT: expected the folder of an artifact, found nothing; make one with `yap-pipeline run`")
    elif named_on_hub(settings.artifact):
        try:
            Reference.parse(settings.artifact)
        except ArtifactError as error:
            problems.append(str(error))
    public_key = settings.artifact_public_key_file
    if public_key is not None and not variables.names_file(public_key):
        problems.append(f"ARTIFACT_PUBLIC_KEY_FILE: expected a file with a public key, found {public_key}")
    try:
        settings.api_keys()
    except SettingsError as error:
        problems += error.problems
    for read in (settings.store, settings.admin_token):
        try:
            read()
        except SettingsError as error:
            problems += error.problems
    if settings.admin_port is not None:
        if settings.admin_token_file is None and not is_loopback(settings.admin_host):
            problems.append(
                f"ADMIN_HOST: expected this machine's own address, or ADMIN_TOKEN_FILE beside it, "
                f"found {settings.admin_host}"
            )
        if settings.admin_port == settings.port:
            problems.append(f"ADMIN_PORT: expected another port than PORT, found {settings.admin_port}")
    for name, bound in settings.bounds().items():
        variable, default = f"CHAT_{name.upper()}", getattr(settings, f"chat_{name}")
        if bound.low > bound.high:
            problems.append(f"{variable}_MIN: expected at most {variable}_MAX ({bound.high:g}), found {bound.low:g}")
        elif not bound.low <= default <= bound.high:
            problems.append(f"{variable}: expected {bound}, found {default:g}")
    if settings.ws_cancel_sentinel == settings.ws_end_sentinel:
        problems.append(
            f"WS_END_SENTINEL: expected another text than WS_CANCEL_SENTINEL, found {settings.ws_end_sentinel!r}"
        )
    return problems


def _problem(error: ErrorDetails) -> str:
    name = str(error["loc"][0])
    field = RuntimeSettings.model_fields[name]
    return (
        f"{name.upper()}: expected {variables.expected(error, field)}, found {variables.found(error['input'], field)}"
    )
