"""A proof for metadata that tests write: every gate that the server asks for, met."""

from __future__ import annotations

from runtime.artifact import BuildMetadata, Gate, Validation
from runtime.artifact.verify import expected_gates

VALIDATED_AT = "2026-01-01T00:00:00+00:00"


def proof_of(metadata: BuildMetadata, *instead: Gate, without: tuple[str, ...] = ()) -> Validation:
    """Return a validation with all expected gates.

    Args:
        instead: gates that stand in place of those of their names, or beside.
        without: names of gates to leave out.
    """
    gates = {
        name: Gate(name=name, value=1.0, relation=relation, threshold=None if relation is None else 1.0)
        for name, relation in expected_gates(metadata).items()
    }
    gates |= {gate.name: gate for gate in instead}
    kept = tuple(gate for name, gate in gates.items() if name not in without)
    return Validation(gates=kept, validated_at=VALIDATED_AT, digest=metadata.digest)
