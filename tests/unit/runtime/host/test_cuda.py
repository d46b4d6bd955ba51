"""What a GPU that cannot be used is said to suffer from."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import Any

import pytest

from runtime.host import cuda
from runtime.host.cuda import CudaError, DeviceState, Failure, diagnosis
from runtime.host.machine import Gpu, Machine

MACHINE = Machine(
    gpus=(Gpu("NVIDIA H200", 90, 141 << 30, 140 << 30),), driver="580.65.06", driver_cuda="13.0", torch_cuda="13.0"
)
FAILURE = Failure("cuInit", 999, "CUDA_ERROR_UNKNOWN", "unknown error")
WHOLE = DeviceState(("nvidia-uvm", "nvidia0", "nvidiactl"), mig=False, exclusive=False)


def test_the_real_error_and_all_facts_are_told_in_one_line() -> None:
    line = diagnosis(FAILURE, MACHINE, replace(WHOLE, visible="0"))
    assert "\n" not in line
    for part in (
        "cuInit failing with CUDA_ERROR_UNKNOWN (999): unknown error",
        "NVIDIA H200 is listed by the driver",
        "device nodes: nvidia-uvm, nvidia0, nvidiactl",
        "made for CUDA 13.0, the driver 580.65.06 offers CUDA 13.0",
        "MIG is off",
        "CUDA_VISIBLE_DEVICES=0",
        "(3)",
    ):
        assert part in line
    assert "(4)" not in line


@pytest.mark.parametrize(
    ("machine", "state", "first"),
    [
        (MACHINE, DeviceState(("nvidia0", "nvidiactl")), "(1) start the container with `--gpus all`"),
        (replace(MACHINE, driver="550.90", driver_cuda="12.4"), WHOLE, "(1) update the host's driver"),
        (MACHINE, replace(WHOLE, mig=True), "(1) end what holds the GPU"),
        (MACHINE, replace(WHOLE, exclusive=True), "(1) end what holds the GPU"),
        (replace(MACHINE, torch_cuda=None), WHOLE, "(1) start the container"),
    ],
)
def test_the_likeliest_remedy_comes_first(machine: Machine, state: DeviceState, first: str) -> None:
    assert first in diagnosis(FAILURE, machine, state)


def test_a_missing_node_is_named() -> None:
    assert "(nvidia-uvm missing)" in diagnosis(FAILURE, MACHINE, DeviceState(("nvidia0", "nvidiactl")))


def answering(monkeypatch: pytest.MonkeyPatch, stdout: str = "", *, error: Exception | None = None) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if error:
            raise error
        return subprocess.CompletedProcess(command, -11, stdout, "Segmentation fault")

    monkeypatch.setattr(subprocess, "run", run)


def test_a_context_that_was_made_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, '{"call": "", "code": 0, "name": "", "text": ""}')
    cuda.check_cuda(MACHINE)


@pytest.mark.parametrize(
    ("stdout", "error", "told"),
    [
        ('{"call": "cuInit", "code": 802, "name": "CUDA_ERROR_SYSTEM_NOT_READY", "text": "not yet"}', None, "802"),
        ("", None, "crash (-11): Segmentation fault"),
        ("", subprocess.TimeoutExpired("python", 60), "no answer"),
    ],
)
def test_whatever_goes_wrong_is_told(
    monkeypatch: pytest.MonkeyPatch, stdout: str, error: Exception | None, told: str
) -> None:
    answering(monkeypatch, stdout, error=error)
    with pytest.raises(CudaError) as refusal:
        cuda.check_cuda(MACHINE)
    assert told in str(refusal.value)


def test_the_probe_runs_on_a_machine_without_a_driver() -> None:
    failure = cuda.probe()
    assert failure is None or failure.call in {"dlopen", "cuInit", "cuDeviceGet", "cuDeviceGetCount"}
