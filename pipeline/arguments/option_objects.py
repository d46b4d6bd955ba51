"""A command's options as one object: a dataclass whose fields are the options, which typer fills.

typer reads a command's parameters. So a command that takes one object is given to it as a function that has the
object's fields for parameters.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True)
class TableOption:
    """One option of a table.

    Attributes:
        name: its parameter's name.
        annotation: what typer reads.
        default: its value when it is not given.
    """

    name: str
    annotation: object
    default: object = None

    def parameter(self) -> inspect.Parameter:
        """Return the option as a parameter of a function."""
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=self.annotation
        )


@dataclass(frozen=True, slots=True)
class OptionTable:
    """The options of a table, by its keys; a field annotated with it maps the keys of those that were given."""

    options: Mapping[Any, TableOption]

    def given(self, values: Mapping[str, object]) -> dict[Any, object]:
        """Return the values that were given, by the table's keys."""
        found = {key: (values[option.name], option.default) for key, option in self.options.items()}
        # By identity: a bound of 0 was given, though it equals a flag's False.
        return {key: value for key, (value, default) in found.items() if value is not default}


def with_options(kind: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Make a command take its options as one object.

    Args:
        kind: a dataclass. A field is an option, by its annotation; a field that is such a dataclass itself is a group,
            whose options are the command's too, and one annotated with an `OptionTable` holds those of the table.
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
        elif table := _table(annotation):
            yield from (option.parameter() for option in table.options.values())
        else:
            default = inspect.Parameter.empty if entry.default is MISSING else entry.default
            yield inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _made(kind: type[Options], given: Mapping[str, object]) -> Options:
    annotations = get_type_hints(kind, include_extras=True)

    def value(name: str) -> object:
        annotation = annotations[name]
        if is_dataclass(annotation):
            return _made(annotation, given)  # type: ignore[arg-type]
        table = _table(annotation)
        return table.given(given) if table else given[name]

    return kind(**{entry.name: value(entry.name) for entry in fields(kind)})  # type: ignore[arg-type]


def _table(annotation: object) -> OptionTable | None:
    return next((part for part in get_args(annotation)[1:] if isinstance(part, OptionTable)), None)
