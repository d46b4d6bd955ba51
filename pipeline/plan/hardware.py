"""The hardware that a plan is checked against: the machine, its free disk, and the quantizer's environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import paths
from pipeline.lanes import gpus
from runtime.host import machine
from runtime.host.machine import RELEVANT_PACKAGES, Gpu, Machine

PROJECT = Path(__file__).resolve().parents[2]

_VERSIONS = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
json.dump(found, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Quantizer:
    """The Python environment that holds the quantizer.

    Attributes:
        python: its interpreter.
        packages: versions that decide what it writes.
    """

    python: Path
    packages: dict[str, str]


@dataclass(frozen=True, slots=True)
class Hardware:
    """The hardware and software that a plan is checked against.

    Attributes:
        machine: what the runtime knows of it too.
        free_disk: bytes free where stages are kept.
        cores: processors that this process may use.
        quantizer: none where no environment with the quantizer was found.
    """

    machine: Machine
    free_disk: int
    cores: int = 1
    quantizer: Quantizer | None = field(default=None)


def describe(cache: Path, quantize_python: Path | None, needs: tuple[str, ...]) -> Hardware:
    """Describe this machine; nothing is written and no GPU context is made.

    Args:
        cache: folder of finished stages.
        quantize_python: interpreter of the quantizer environment, where it was named.
        needs: distributions that the quantizer consists of.
    """
    return Hardware(
        machine=machine.describe(),
        free_disk=paths.free_bytes(cache),
        cores=len(os.sched_getaffinity(0)),
        quantizer=find_quantizer(quantize_python, needs),
    )


def elsewhere(gpu: Gpu, count: int, here: Hardware, needs: tuple[str, ...]) -> Hardware:
    """Describe a machine that is not here: the GPU, and what the images bring. Its disk is taken to be large enough."""
    return Hardware(
        machine=gpus.machine_with(gpu, count, here.machine),
        free_disk=sys.maxsize,
        cores=here.cores,
        quantizer=here.quantizer or Quantizer(Path(sys.executable), dict.fromkeys(needs, "")),
    )


def find_quantizer(named: Path | None, needs: tuple[str, ...]) -> Quantizer | None:
    """Find the quantizer environment: the named interpreter, else `.venv-quantize` beside us, else this one."""
    candidates = [named] if named else [PROJECT / ".venv-quantize/bin/python", Path(sys.executable)]
    for python in candidates:
        packages = _packages_of(python)
        if packages.keys() >= set(needs):
            return Quantizer(python, packages)
    return None


def _packages_of(python: Path) -> dict[str, str]:
    if python == Path(sys.executable):
        return machine.installed_packages()
    if not os.access(python, os.X_OK):
        return {}
    command = [str(python), "-I", "-c", _VERSIONS, *RELEVANT_PACKAGES]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return {str(name): str(version) for name, version in json.loads(answer.stdout).items()}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}  # not a Python that works: as good as none
