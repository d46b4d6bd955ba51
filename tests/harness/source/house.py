"""The packages of the house, their names and their floors, as files and import-linter's contracts say."""

from __future__ import annotations

import re
from pathlib import Path

from importlinter.api import read_configuration

ROOT = Path(__file__).resolve().parents[3]
HOUSES = ("runtime", "pipeline")


def folders(top: str) -> list[Path]:
    """Return every folder with modules, at and under a folder of the root."""
    return sorted({path.parent for path in (ROOT / top).rglob("*.py")})


def rooms() -> list[Path]:
    """Return every package of the house but the two that hold it."""
    return [folder for house in HOUSES for folder in folders(house) if folder != ROOT / house]


def name_of(folder: Path) -> str:
    """Return a folder's path from the root."""
    return folder.relative_to(ROOT).as_posix()


def floors(house: str) -> dict[str, int]:
    """Return the floor of each room and ground module, 0 for the highest, as import-linter holds them."""
    contracts = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    (layers,) = [contract["layers"] for contract in contracts if contract.get("containers") == [house]]
    return {room.strip(): floor for floor, layer in enumerate(layers) for room in re.split("[:|]", layer)}
