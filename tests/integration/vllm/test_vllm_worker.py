"""A compile cache is found wherever the artifact lies, and a CPU's matrix unit is asked for before it is used."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.engines import EngineOptions
from runtime.engines.vllm import contract
from runtime.engines.vllm.arguments import engine_arguments, prepare_environment

pytestmark = pytest.mark.engine

OPTIONS = EngineOptions(max_model_len=2048, max_num_seqs=16)


# <asm/prctl.h>: asks which units this process may use; 18 is the number of AMX's tiles.
ARCH_PRCTL, ARCH_GET_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1022, 18


def may_use_matrix_unit() -> bool:
    """Whether Linux lets this process use AMX."""
    permitted = ctypes.c_ulong()
    ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_GET_XCOMP_PERM, ctypes.byref(permitted))
    return bool(permitted.value >> XFEATURE_XTILEDATA & 1)


@pytest.mark.skipif(" amx_tile" not in Path("/proc/cpuinfo").read_text(), reason="a CPU without AMX")
def test_a_worker_may_use_the_matrix_unit() -> None:
    """vLLM's attention uses it unasked, and Linux ends the worker for it, where nothing else has asked before."""
    module = "tests.integration.vllm.test_vllm_worker"
    script = f"from {module} import may_use_matrix_unit as may; before = may(); import runtime.engines.vllm.worker"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; print(before, may())"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-2:] == ["False", "True"]


END_OF_START = """
import sys, torch
from runtime.engines.vllm import contract
if {mended}:
    contract.import_no_unused_kernels()
from vllm.model_executor.warmup import kernel_warmup
from vllm.utils import jit_monitor
kernel_warmup._warmup_ll_bf16_router_gemm(torch.nn.Linear(8, 8))
jit_monitor.activate()
print(sorted({{"cutlass", "tilelang"}} & sys.modules.keys()))
"""


@pytest.mark.parametrize("mended", [False, True])
def test_the_end_of_a_start_imports_no_kernels_that_the_model_does_not_use(mended: bool, tmp_path: Path) -> None:
    """As a GPU's worker ends its start; without the mend vLLM imports both, which take a second each."""
    for package, module in (("cutlass", "cute"), ("tilelang", "jit")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / f"{module}.py").write_text("compile = None\n")
    done = subprocess.run(
        [sys.executable, "-c", END_OF_START.format(mended=mended)],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = done.stdout.splitlines()[-1]
    assert found == ("[]" if mended else "['cutlass', 'tilelang']")


def key(folder: Path, options: EngineOptions = OPTIONS) -> str:
    """The compile cache's key, in a process that has what a worker imports."""
    import runtime.engines.vllm.worker  # noqa: F401

    prepare_environment(options)
    return engine_arguments(folder, options).create_engine_config().compute_hash()


def test_the_compile_cache_is_keyed_by_the_model_and_not_by_its_place(chat_folder: Path, tmp_path: Path) -> None:
    copies = [tmp_path / "built" / "here", tmp_path / "served"]
    for copy in copies:
        shutil.copytree(chat_folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    assert key(copies[0]) == key(copies[1])
    assert key(copies[0]) == key(copies[1], replace(OPTIONS, gpu_fraction=0.5))
    assert key(copies[0]) != key(copies[1], replace(OPTIONS, max_model_len=1024))
    file = copies[1] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.5}))
    assert key(copies[0]) != key(copies[1])


def test_neither_a_cache_s_size_nor_a_user_s_home_counts_into_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.25 counts both: where the size comes from a plan, or another user serves, nothing compiled was found."""
    from vllm import envs
    from vllm.config import CacheConfig

    places = {"VLLM_CONFIG_ROOT": "/home/one/.config", "VLLM_XLA_CACHE_PATH": "/home/one/.cache", "VLLM_USE_X": True}
    monkeypatch.setattr(
        CacheConfig, "compute_hash", lambda config: f"{config.kv_cache_memory_bytes} {config.cache_dtype}"
    )
    monkeypatch.setattr(envs, "compile_factors", lambda: dict(places))
    contract.key_size_as_measured()
    contract.key_no_places()
    sized = CacheConfig(kv_cache_memory_bytes=5)
    assert sized.compute_hash() == CacheConfig().compute_hash() == "None auto"
    assert sized.kv_cache_memory_bytes == 5
    assert CacheConfig(cache_dtype="fp8").compute_hash() != sized.compute_hash()
    assert envs.compile_factors() == {"VLLM_USE_X": True}
