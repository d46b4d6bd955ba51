"""How a variable of the server is declared: default, meaning, unit, and how its text is read."""

from __future__ import annotations

from typing import Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


class SettingsError(Exception):
    """The environment asks for something that cannot be. One problem a line."""

    text_may_be_logged = True

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def var(default: Any, meaning: str, *, unit: str = "", **constraints: Any) -> Any:  # noqa: ANN401 - as pydantic's Field
    """Declare one variable."""
    return Field(default=default, description=meaning, json_schema_extra={"unit": unit}, **constraints)


def open_var(fallback: float, meaning: str, *, unit: str = "", **constraints: Any) -> Any:  # noqa: ANN401 - as above
    """Declare a variable whose default depends on the artifact; where that has no say it is `fallback`.

    The meaning's `{}` shows it.
    """
    return Field(
        default=None,
        description=meaning.format(fallback),
        json_schema_extra={"unit": unit, "fallback": fallback},
        **constraints,
    )


def lowered(value: object) -> object:
    """Text in small letters, without spaces around it."""
    return value.strip().lower() if isinstance(value, str) else value


def listed(value: object) -> object:
    """The parts of a list whose commas separate them."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def stripped(value: object) -> object:
    """Text without spaces around it."""
    return value.strip() if isinstance(value, str) else value


def origins(value: object) -> object:
    """Origins as browsers send them: scheme and host in small letters, no default port. `*` is any, as without a list.

    A list with `*` in it is the empty one.
    """
    entries = listed(value)
    if not isinstance(entries, tuple):
        return entries
    found = tuple(canonical_origin(str(entry)) for entry in entries)
    return () if "*" in found else found


def canonical_origin(origin: str) -> str:
    """An origin as a browser sends it.

    >>> canonical_origin(" HTTPS://App.Example:443/ ")
    'https://app.example'
    """
    scheme, separator, host = origin.strip().rstrip("/").lower().partition("://")
    port = {"http": ":80", "https": ":443", "ws": ":80", "wss": ":443"}.get(scheme)
    return scheme + separator + (host.removesuffix(port) if port else host)


def resolvable(value: str) -> str:
    """A host, which can be looked up by its name.

    Raises:
        PydanticCustomError: no name of a host or address is spelt so.
    """
    try:
        value.encode("idna")
    except UnicodeError:
        raise PydanticCustomError("host", "a host name or an address") from None
    return value


ANY_CASE = BeforeValidator(lowered)
STRIPPED = BeforeValidator(stripped)
