"""Progress that tests give to a run, and read afterwards."""

from __future__ import annotations


class RecordedProgress:
    """Progress that keeps what it was told.

    Attributes:
        steps: every step's message.
        fractions: every fraction of any step.
    """

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.fractions: list[float] = []

    def step(self, message: str) -> None:
        """Keep a step, which has words."""
        assert message
        self.steps.append(message)

    def advance(self, fraction: float) -> None:
        """Keep a fraction, which is one."""
        assert 0 <= fraction <= 1, fraction
        self.fractions.append(fraction)
