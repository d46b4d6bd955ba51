"""The proof: what was measured of an artifact, and the bounds that it met."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from runtime.artifact.schema.entry import Entry

Relation = Literal["<=", ">="]


class Gate(Entry):
    """One figure, and the bound it had to meet."""

    name: str
    # Strict: true is no 1, and "0.9" no figure.
    value: float = Field(strict=True)
    relation: Relation | None = Field(default=None, description="none: reported, not gated")
    threshold: float | None = Field(default=None, strict=True)
    unit: str = ""

    @model_validator(mode="after")
    def _whole_bound(self) -> Gate:
        if (self.relation is None) != (self.threshold is None):
            raise ValueError(f"expected both a relation and a threshold of {self.name}, or neither")
        return self

    @property
    def passed(self) -> bool:
        """Whether the figure meets its bound. One without a bound passes.

        What is no number, without an end or negative is no figure of any gate, and never passes.
        """
        if not (math.isfinite(self.value) and self.value >= 0):
            return False
        if self.relation is None or self.threshold is None:
            return True
        if not math.isfinite(self.threshold):
            return False
        return self.value <= self.threshold if self.relation == "<=" else self.value >= self.threshold


class Validation(Entry):
    """What `validate` measured. An artifact without it, or with a failed gate, is neither served nor pushed."""

    gates: tuple[Gate, ...] = Field(min_length=1)
    validated_at: str = Field(description="RFC 3339, UTC")
    digest: str = Field(description="the artifact's digest at that moment")
    not_measured: tuple[str, ...] = Field(
        default=(), description="gates of parts that nothing was there to measure by; left out where there are none"
    )
    utterances_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="the user's labelled utterances that the classifier was measured on; left out without any",
    )

    @model_serializer(mode="wrap")
    def _without_what_is_not(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what there is none of, so that the others are written as they always were."""
        fields: dict[str, object] = written(self)
        optional = {"not_measured", "utterances_sha256"}
        return {name: value for name, value in fields.items() if value or name not in optional}

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)
