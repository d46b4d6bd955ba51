"""A variable that a settings class refused: what it takes, in words, and its value unless that is a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import Secret, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

SECRETS = (SecretStr, SecretBytes, Secret)
NOT_SHOWN = "a value that is not shown"

# What each kind of pydantic's errors expects; `{…}` are the error's own facts.
EXPECTED = {
    "int_parsing": "a valid integer",
    "int_parsing_size": "a valid integer",
    "int_from_float": "a valid integer",
    "int_type": "a valid integer",
    "float_parsing": "a valid number",
    "float_type": "a valid number",
    "finite_number": "a finite number",
    "bool_parsing": "a valid boolean",
    "bool_type": "a valid boolean",
    "string_type": "a text",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} characters",
    "path_type": "a path",
    "tuple_type": "a list",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "greater than or equal to {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "less than or equal to {le}",
}


def expected(error: ErrorDetails, field: FieldInfo) -> str:
    """What a field takes instead of what it was given."""
    if error["type"] == "literal_error":
        *others, last = [str(word) for word in _words(field.annotation)]
        return f"{', '.join(others)} or {last}" if others else last
    text = EXPECTED.get(error["type"])
    facts = {name: _plain(fact) for name, fact in error.get("ctx", {}).items()}
    return text.format(**facts) if text else error["msg"]


def found(value: object, field: FieldInfo) -> str:
    """The value as a person may see it."""
    return NOT_SHOWN if holds_secret(field) else repr(value)


def holds_secret(field: FieldInfo) -> bool:
    """Whether a field's type says that its value is a secret."""
    return any(_is_secret(part) for part in _parts(field.annotation))


def names_file(path: Path) -> bool:
    """Whether a file is there. Names that the system refuses, such as one that is too long, name none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _plain(fact: object) -> object:
    return int(fact) if isinstance(fact, float) and fact.is_integer() else fact


def _parts(annotation: Any) -> list[Any]:  # noqa: ANN401 - annotations have no type of their own
    """An annotation, and what it is made of."""
    return [annotation, *(part for inner in get_args(annotation) for part in _parts(inner))]


def _is_secret(part: Any) -> bool:  # noqa: ANN401 - as above
    kind = get_origin(part) or part
    return isinstance(kind, type) and issubclass(kind, SECRETS)


def _words(annotation: Any) -> list[Any]:  # noqa: ANN401 - as above
    return [word for part in _parts(annotation) if get_origin(part) is Literal for word in get_args(part)]
