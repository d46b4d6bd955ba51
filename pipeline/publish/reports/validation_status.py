"""Whether an artifact may be served, in a person's words."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.artifact import BuildMetadata
from runtime.artifact.checks.gates import gate_problem


@dataclass(frozen=True, slots=True)
class ValidationStatus:
    """Whether an artifact may be served, with the reason.

    Attributes:
        valid: it passed its gates, and its files did not change since.
        reason: since when, or why not.
    """

    valid: bool
    reason: str

    def __str__(self) -> str:
        return f"yes, {self.reason}" if self.valid else f"no: {self.reason}"


def validation_status(metadata: BuildMetadata) -> ValidationStatus:
    """Tell whether an artifact may be served, and since when or why not."""
    if metadata.validation is None:
        return ValidationStatus(False, "never validated")
    if not metadata.validation.passed:
        return ValidationStatus(
            False, "failed " + ", ".join(gate.name for gate in metadata.validation.gates if not gate.passed)
        )
    if problem := gate_problem(metadata):
        return ValidationStatus(False, problem)
    if metadata.validation.digest != metadata.digest:
        return ValidationStatus(False, "its files changed after validation")
    return ValidationStatus(True, f"on {metadata.validation.validated_at}")
