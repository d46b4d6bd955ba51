"""The CUDA context of an engine's process, opened while that still imports what it will compute with.

Finding the GPUs and making a context on one keeps the driver busy for a part of a second, more where a host has many.
It wants no lock of Python's, so that it can go on beside. The context is the device's primary one, which PyTorch takes
too: where it is not there yet, PyTorch waits, and where it could not be made, PyTorch says why.
"""

from __future__ import annotations

import ctypes
import threading

DRIVER = "libcuda.so.1"


def open_beside() -> threading.Thread:
    """Open the context of the first GPU that this process sees, in a thread. Call in a process that forks no other."""
    thread = threading.Thread(target=_open, name="cuda-context", daemon=True)
    thread.start()
    return thread


def _open() -> None:
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
