"""Progress of long work: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

# A log keeps every line for ever, so a fraction is worth a new one only now and then.
PLAIN_SECONDS_BETWEEN_FRACTIONS = 10.0


class Progress(Protocol):
    """The receiver of what a stage does, and of how far it is."""

    def step(self, message: str) -> None:
        """Begin a new step; its fraction starts at nothing."""

    def advance(self, fraction: float) -> None:
        """Tell which part of the present step is done, 0 to 1."""


class PlainProgress:
    """Progress as plain lines, one a step with the seconds since the start, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._begun = time.monotonic()
        self._last_fraction = self._begun
        self._message = ""

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        return None

    def step(self, message: str) -> None:
        """Print a new step."""
        self._message, self._last_fraction = message, time.monotonic()
        self._print(message)

    def advance(self, fraction: float) -> None:
        """Print the fraction, when the last line is some seconds old."""
        now = time.monotonic()
        if now - self._last_fraction >= PLAIN_SECONDS_BETWEEN_FRACTIONS:
            self._last_fraction = now
            self._print(f"{self._message}: {fraction:.0%}")

    def _print(self, text: str) -> None:
        print(f"[{time.monotonic() - self._begun:7.1f} s] {text}", file=self._stream, flush=True)


class LiveProgress:
    """Progress as a spinner with the present step and its bar; finished steps stay above it."""

    def __init__(self, console: Console) -> None:
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._message = ""

    def __enter__(self) -> LiveProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.stop()

    def step(self, message: str) -> None:
        """Show a new step, and leave the last one above it."""
        if self._message:
            self._bar.console.print(f"  {self._message}", style="dim", markup=False, highlight=False)
        self._message = message
        self._bar.reset(self._task, description=message, total=None)

    def advance(self, fraction: float) -> None:
        """Show the fraction in the bar."""
        self._bar.update(self._task, total=1.0, completed=fraction)


def for_terminal() -> PlainProgress | LiveProgress:
    """Make the progress for standard error: live on a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    return LiveProgress(console) if console.is_terminal else PlainProgress()
