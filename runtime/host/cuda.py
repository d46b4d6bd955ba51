"""Whether CUDA can use a GPU that the driver lists, and if not, why.

A GPU can show up in `nvidia-smi` and still refuse every context. Libraries then say little ("Device 0 seems
unavailable" hides the exception), so the driver is asked directly here, in a process of its own: a failed or a
successful start leaves nothing behind in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from runtime.host.machine import Machine

PROBE_TIMEOUT_S = 60

# Device nodes without which no context can be made; a container often lacks the last one.
NEEDED_NODES = ("nvidiactl", "nvidia-uvm")

_PROBE = """
import ctypes, json, sys
def end(call, code, name, text):
    json.dump({"call": call, "code": code, "name": name, "text": text}, sys.stdout)
    sys.exit(0)
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    end("dlopen", -1, "library not found", str(error))
def check(call, *arguments):
    code = getattr(cuda, call)(*arguments)
    if code:
        name, text = ctypes.c_char_p(), ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(name))
        cuda.cuGetErrorString(code, ctypes.byref(text))
        end(call, code, (name.value or b"unknown").decode(), (text.value or b"").decode())
count, device, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
check("cuInit", 0)
check("cuDeviceGetCount", ctypes.byref(count))
check("cuDeviceGet", ctypes.byref(device), 0)
check("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
cuda.cuDevicePrimaryCtxRelease_v2(device)
end("", 0, "", "")
"""


class CudaError(RuntimeError):
    """CUDA cannot be used. The message is one line: the real error, what the machine looks like, and the remedies."""

    text_may_be_logged = True


@dataclass(frozen=True, slots=True)
class Failure:
    """The driver's own answer: the call that failed, the error's number and name, and its text."""

    call: str
    code: int
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The state of the GPU that usually explains a failure.

    Attributes:
        nodes: names of the device nodes under /dev that belong to NVIDIA.
        mig: the first GPU is split by MIG; none where that is not known.
        exclusive: the first GPU takes one process at a time.
        visible: `CUDA_VISIBLE_DEVICES`, none when unset.
    """

    nodes: tuple[str, ...]
    mig: bool | None = None
    exclusive: bool | None = None
    visible: str | None = None


def check_cuda(machine: Machine) -> None:
    """Make a context on the first GPU, in another process.

    Raises:
        CudaError: it cannot be made, with the diagnosis.
    """
    failure = probe()
    if failure is not None:
        raise CudaError(diagnosis(failure, machine, device_state()))


def probe() -> Failure | None:
    """Ask the driver for a context on the first GPU; none when it gave one."""
    try:
        answer = subprocess.run(
            [sys.executable, "-I", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            env=os.environ.copy(),  # this process's own may be moved meanwhile, by an import that sets a variable
        )
        told = json.loads(answer.stdout)
    except subprocess.TimeoutExpired:
        return Failure("cuInit", -1, "no answer", f"nothing within {PROBE_TIMEOUT_S} s")
    except ValueError:
        return Failure("cuInit", answer.returncode, "crash", answer.stderr.strip().rpartition("\n")[2])
    return Failure(told["call"], told["code"], told["name"], told["text"]) if told["code"] else None


def device_state() -> DeviceState:
    """Read the device nodes, MIG and the compute mode."""
    import pynvml

    nodes = tuple(sorted(path.name for path in Path("/dev").glob("nvidia*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    mig = exclusive = None
    try:
        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            exclusive = pynvml.nvmlDeviceGetComputeMode(handle) == pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS
            mig = pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        pass  # GPUs without MIG say "not supported"; what was learnt before that stays
    return DeviceState(nodes, mig, exclusive, visible)


def diagnosis(failure: Failure, machine: Machine, state: DeviceState) -> str:
    """One line: the real error, the facts, and the three usual remedies with the likeliest first."""
    gpu = machine.gpus[0].name if machine.gpus else "no GPU"
    cuda = f"made for CUDA {machine.torch_cuda}, the driver {machine.driver} offers CUDA {machine.driver_cuda}"
    mig = {True: "MIG is on", False: "MIG is off", None: "MIG is unknown"}[state.mig]
    facts = [
        f"{gpu} is listed by the driver",
        f"device nodes: {', '.join(state.nodes) or 'none'}",
        cuda,
        mig,
        *(["compute mode: one process at a time"] if state.exclusive else []),
        *([f"CUDA_VISIBLE_DEVICES={state.visible}"] if state.visible is not None else []),
    ]
    missing = [name for name in NEEDED_NODES if name not in state.nodes]
    nodes = "start the container with `--gpus all`, or run `nvidia-modprobe -u -c=0` on the host"
    if missing:
        nodes += f" ({' and '.join(missing)} missing)"
    driver = "update the host's driver, or use an image whose CUDA it offers"
    share = "end what holds the GPU, give this process a MIG instance or turn MIG off, else restart the host"
    old = _newer(machine.torch_cuda, machine.driver_cuda)
    likely = nodes if missing else driver if old else share if state.mig or state.exclusive else nodes
    remedies = [likely, *(remedy for remedy in (nodes, driver, share) if remedy != likely)]
    numbered = " ".join(f"({number}) {remedy}" for number, remedy in enumerate(remedies, 1))
    said = f"{failure.name} ({failure.code}): {failure.text}" if failure.text else f"{failure.name} ({failure.code})"
    return f"expected CUDA to start, found {failure.call} failing with {said}; {'; '.join(facts)}; try {numbered}"


def _newer(wanted: str | None, offered: str | None) -> bool:
    try:
        return int((wanted or "").partition(".")[0]) > int((offered or "").partition(".")[0])
    except ValueError:
        return False  # one of them is unknown
