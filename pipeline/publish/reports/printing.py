"""Printing for a person: names and paths as they are, tables that can be copied from, figures with their units."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from runtime.artifact import Gate

GIB = 2**30
# What stands for the figure of a tool that no utterance asks for.
NOT_MEASURED = "not measured"


class PlainConsole(Console):
    """A console that prints names and paths as they are: brackets and colons in them are no markup."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Leave it to the command how it ends when nobody reads."""
        raise BrokenPipeError


def print_whole(table: Table, rows: Sequence[tuple[str, ...]], console: Console) -> None:
    """Print a table whose cells are broken at spaces alone, so that a path can be copied.

    Where that needs it, the table is wider than the terminal.
    """
    for row in rows:
        table.add_row(*row)
    for column, cells in zip(table.columns, zip(*rows, strict=True), strict=True):
        column.min_width = max((len(word) for cell in cells for word in cell.split()), default=0)
    needed = sum(column.min_width or 0 for column in table.columns) + 2 * len(table.columns)
    console.print(table, width=max(console.width, needed), crop=False)


def measured(gate: Gate) -> str:
    """Return a gate's figure with its unit."""
    return f"{gate.value:.4g} {gate.unit}".rstrip()


def duration(seconds: float) -> str:
    """Word a number of seconds for a person.

    >>> duration(0.2), duration(75), duration(4000)
    ('0.2 s', '1 min 15 s', '1 h 6 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
