"""The CUDA context that is opened beside imports: on the first GPU, once, and of no consequence where it fails."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import pytest

from runtime.engines.vllm import context

NEVER_S = 60
OK, NO_DEVICE = 0, 100


class Driver:
    """As much of NVIDIA's driver as opening a context takes."""

    def __init__(self, **codes: int) -> None:
        self.codes = codes
        self.calls: list[tuple[str, int]] = []
        self.threads: set[int] = set()

    def _call(self, name: str, argument: int) -> int:
        self.calls.append((name, argument))
        self.threads.add(threading.get_ident())
        return self.codes.get(name, OK)

    def cuInit(self, flags: int) -> int:
        return self._call("cuInit", flags)

    def cuDeviceGet(self, into: Any, ordinal: int) -> int:
        into._obj.value = 7
        return self._call("cuDeviceGet", ordinal)

    def cuDevicePrimaryCtxRetain(self, into: Any, device: ctypes.c_int) -> int:
        into._obj.value = 1
        return self._call("cuDevicePrimaryCtxRetain", device.value)


ALL = [("cuInit", 0), ("cuDeviceGet", 0), ("cuDevicePrimaryCtxRetain", 7)]


@pytest.mark.parametrize(
    ("fails", "calls"), [("", ALL), ("cuInit", ALL[:1]), ("cuDeviceGet", ALL[:2]), ("cuDevicePrimaryCtxRetain", ALL)]
)
def test_the_first_gpus_context_is_opened_as_far_as_that_goes(
    monkeypatch: pytest.MonkeyPatch, fails: str, calls: list[tuple[str, int]]
) -> None:
    driver = Driver(**{fails: NO_DEVICE} if fails else {})
    monkeypatch.setattr(context.ctypes, "CDLL", lambda name: driver if name == "libcuda.so.1" else None)
    context.open_beside().join(NEVER_S)
    assert driver.calls == calls
    assert threading.get_ident() not in driver.threads


def test_without_a_driver_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "DRIVER", "libnothing.so.0")
    thread = context.open_beside()
    thread.join(NEVER_S)
    assert not thread.is_alive()
