"""How the preflight reads what is installed, on files as the packages write them."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.images import bake

TORCH = "from typing import Optional\n__version__ = '2.13.0+{build}'\ndebug = False\ncuda: Optional[str] = {cuda}\n"
TORCHVISION = (
    "__version__ = '0.28.0+{build}'\n"
    "from torchvision.extension import _check_cuda_version\n"
    "if _check_cuda_version() > 0:\n    cuda = _check_cuda_version()\n"
)


@pytest.fixture(scope="module")
def stack() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stack", bake.ROOT / "images" / "preflight.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("torch", "torchvision", "expected"),
    [
        (TORCH.format(build="cu130", cuda="'13.0'"), TORCHVISION.format(build="cu130"), []),
        (
            TORCH.format(build="cu128", cuda="'12.8'"),
            TORCHVISION.format(build="cu130"),
            ["torch: expected a build for CUDA 13, found 12.8; pip may have replaced it"],
        ),
        (
            TORCH.format(build="cu130", cuda="'13.0'"),
            TORCHVISION.format(build="cu128"),
            ["torchvision: expected a build for CUDA 13, found 12.8; pip may have replaced it"],
        ),
        (
            TORCH.format(build="cpu", cuda="None"),
            TORCHVISION.format(build="cpu"),
            [
                "torch: expected a build for CUDA 13, found none; pip may have replaced it",
                "torchvision: expected a build for CUDA 13, found none; pip may have replaced it",
            ],
        ),
    ],
    ids=["13", "torch 12", "torchvision 12", "cpu"],
)
def test_torch_and_torchvision_are_told_by_the_cuda_they_were_built_for(
    stack: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    torch: str,
    torchvision: str,
    expected: list[str],
) -> None:
    for package, text in (("torch", torch), ("torchvision", torchvision)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "version.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert list(stack.torch_cuda("vllm")) == expected


def test_tritons_helper_must_be_compiled_where_no_compiler_is(
    stack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next(stack.triton()).startswith("triton/backends/nvidia/driver.c: expected Triton's source, found none")
    source = tmp_path / "triton" / "backends" / "nvidia" / "driver.c"
    source.parent.mkdir(parents=True)
    source.write_text("int x;")
    compiled = tmp_path / "lib" / "compiled" / f"{hashlib.sha256(b'int x;').hexdigest()}.so"
    assert f"expected it compiled as {compiled}, found neither that nor a compiler" in next(stack.triton())
    compiled.parent.mkdir(parents=True)
    compiled.touch()
    assert list(stack.triton()) == []


def test_tritons_helper_is_left_to_a_compiler(
    stack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "gcc").touch(mode=0o755)
    assert list(stack.triton()) == []


class Nvml:
    """As much of NVIDIA's management library as the preflight asks, with so many GPUs."""

    def __init__(self, count: int) -> None:
        self.count = count

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlShutdown(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, length: int) -> int:
        text.value = b"580.65.06"
        return 0


@pytest.mark.parametrize(
    ("here", "environment", "found"),
    [
        (1, {}, None),
        (2, {"TENSOR_PARALLEL_SIZE": "2"}, None),
        (1, {"TENSOR_PARALLEL_SIZE": "2"}, "expected 2 GPUs, found 1"),
        (3, {"TENSOR_PARALLEL_SIZE": "2", "PIPELINE_PARALLEL_SIZE": "2"}, "expected 4 GPUs, found 3"),
        (8, {"TENSOR_PARALLEL_SIZE": "2", "CUDA_VISIBLE_DEVICES": "5"}, "expected 2 GPUs, found 1"),
        (8, {"TENSOR_PARALLEL_SIZE": "2", "CUDA_VISIBLE_DEVICES": "5,6"}, None),
        (8, {"TENSOR_PARALLEL_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}, "expected 2 GPUs, found 0"),
        (1, {"TENSOR_PARALLEL_SIZE": "many"}, None),  # the settings tell
        (1, {"TENSOR_PARALLEL_SIZE": " "}, None),
    ],
)
@pytest.mark.parametrize("shared_mib", [64, 1024])
def test_a_container_with_fewer_gpus_or_less_shared_memory_than_it_is_told_to_use_says_so(
    stack: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    here: int,
    environment: dict[str, str],
    found: str | None,
    shared_mib: int,
) -> None:
    for name in ("TENSOR_PARALLEL_SIZE", "PIPELINE_PARALLEL_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stack, "load", lambda places: (Nvml(here), ""))
    for other in ("cuda_runtime", "torch_cuda", "temporary_folder"):
        monkeypatch.setattr(stack, other, lambda *_: iter(()))
    free = SimpleNamespace(f_bavail=shared_mib, f_frsize=1 << 20)
    monkeypatch.setattr(stack.os, "statvfs", lambda place: free)
    lines = list(stack.problems("vllm", start=True))
    several = environment.get("TENSOR_PARALLEL_SIZE", "") == "2"
    expected = [found] if found else []
    if several and shared_mib == 64:
        expected.append("/dev/shm: expected 256 MiB or more, found 64")
    assert len(lines) == len(expected)
    assert all(part in line for part, line in zip(expected, lines, strict=True))
