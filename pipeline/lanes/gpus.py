"""GPUs by name, so that a build can be planned for one that is not here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from runtime import defaults
from runtime.host.machine import Gpu, Machine

GIB = 2**30

# Name, compute capability, and what the driver tells of the memory, in GiB: some less than the name says.
_KNOWN = (
    ("RTX-3090-24GB", 86, 24.0),
    ("RTX-4090-24GB", 89, 24.0),
    ("RTX-5090-32GB", 120, 31.8),
    ("RTX-A6000-48GB", 86, 48.0),
    ("RTX-6000-ADA-48GB", 89, 48.0),
    ("RTX-PRO-6000-96GB", 120, 95.6),
    ("A10-24GB", 86, 22.5),
    ("L4-24GB", 89, 22.5),
    ("L40S-48GB", 89, 45.0),
    ("A100-40GB", 80, 39.6),
    ("A100-80GB", 80, 79.3),
    ("H100-80GB", 90, 79.6),
    ("H100-NVL-94GB", 90, 93.6),
    ("GH200-96GB", 90, 95.6),
    ("H200-141GB", 90, 139.8),
    ("B200-180GB", 100, 179.0),
)
GPUS: Mapping[str, Gpu] = MappingProxyType(
    {name: Gpu(name, sm, int(gib * GIB), int(gib * GIB)) for name, sm, gib in _KNOWN}
)
# What the images bring, where the environment of a lane is not here either; a test holds them equal to the locks.
PACKAGES: Mapping[str, str] = MappingProxyType({"vllm": "0.31.0", "tensorrt-llm": defaults.TENSORRT_LLM})
DRIVER, CUDA = "580", "13.0"


def find(name: str) -> Gpu | None:
    """Return the GPU that a name means: in any case, without its memory where that is not needed to tell.

    >>> find("h200").name, find("A100")
    ('H200-141GB', None)
    """
    wanted = re.sub(r"[\s_]+", "-", name.strip()).upper().removeprefix("NVIDIA-")
    exact = GPUS.get(wanted)
    if exact is not None:
        return exact
    found = [gpu for known, gpu in GPUS.items() if re.sub(r"-\d+GB$", "", known) == wanted]
    return found[0] if len(found) == 1 else None


def machine_with(gpu: Gpu, count: int, here: Machine) -> Machine:
    """Return a machine with so many of a GPU and everything that the images bring; its main memory is not known."""
    return replace(
        here,
        gpus=(gpu,) * count,
        driver=DRIVER,
        driver_cuda=CUDA,
        torch_cuda=CUDA,
        memory_bytes=0,
        packages={**here.packages, **PACKAGES},
    )
