"""A command's options as one object: a dataclass whose fields are the options, which typer fills.

typer reads a command's parameters. So a command that takes one object is given to it as a function that has the
object's fields for parameters.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

Options = TypeVar("Options")


def filled(kind: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Give a command its options as an object of a kind.

    Args:
        kind: a dataclass. A field is an option, by its annotation; a field that is such a dataclass itself is a group,
            whose options are the command's too.
    """

    def decorate(command: Callable[[Options], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: object) -> None:
            command(_made(kind, given))

        parameters = list(_parameters(kind))
        if len({parameter.name for parameter in parameters}) < len(parameters):
            raise TypeError(f"{kind.__name__} holds two options of one name")
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameters(kind: type[Any]) -> Iterator[inspect.Parameter]:
    annotations = get_type_hints(kind, include_extras=True)
    for entry in fields(kind):
        annotation = annotations[entry.name]
        if is_dataclass(annotation):
            yield from _parameters(annotation)  # type: ignore[arg-type]
            continue
        default = inspect.Parameter.empty if entry.default is MISSING else entry.default
        yield inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _made(kind: type[Options], given: Mapping[str, object]) -> Options:
    annotations = get_type_hints(kind)
    groups = {name: annotation for name, annotation in annotations.items() if is_dataclass(annotation)}
    names = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: _made(groups[name], given) if name in groups else given[name] for name in names})  # type: ignore[arg-type]
