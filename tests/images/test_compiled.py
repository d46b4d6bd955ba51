"""Servers have no compiler, so what Triton compiles at its first use is compiled with the image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import docker
import pytest

from tests.images import bake
from tests.images.containers import outcome, running

# As Triton's: a header beside it, Python's own, and functions of a driver that is not there when it is compiled.
DRIVER = '#include "cuda.h"\n#include <Python.h>\nCUresult start(void) { Py_INCREF(Py_None); return cuInit(0); }\n'
HEADER = "typedef int CUresult;\nCUresult cuInit(unsigned);\n"
PYTHON_H = "#define Py_None 0\n#define Py_INCREF(object)\n"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with a driver like Triton's, compiled by the script that the Dockerfile calls."""
    venv = tmp_path_factory.mktemp("venv")
    package = venv / "lib" / "python3.11" / "site-packages" / "triton" / "backends" / "nvidia"
    (package / "include").mkdir(parents=True)
    (package / "driver.c").write_text(DRIVER)
    (package / "include" / "cuda.h").write_text(HEADER)
    (package / "include" / "Python.h").write_text(PYTHON_H)
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(sys.executable)
    subprocess.run(["sh", "images/drivers.sh", str(venv)], cwd=bake.ROOT, check=True)
    return venv


def compile_in(engine: docker.DockerClient, image: str, environment: Path, source: str) -> tuple[int, str]:
    """Call the image's compiler as Triton does, and compare with what was compiled ahead of time."""
    command = (
        f"mkdir /tmp/x && {source} > /tmp/x/cuda_utils.c && "
        '"$CC" /tmp/x/cuda_utils.c -O3 -shared -fPIC -o /tmp/x/cuda_utils.so -l:libcuda.so.1 -L/lib -I/include'
        " && cmp /tmp/x/cuda_utils.so /opt/yap/venv/lib/compiled/*.so && echo the same"
    )
    volumes = {
        str(environment / "lib" / "compiled"): {"bind": "/opt/yap/venv/lib/compiled", "mode": "ro"},
        str(environment / "lib" / "python3.11"): {"bind": "/given", "mode": "ro"},
    }
    options = {"read_only": True, "tmpfs": {"/tmp": ""}, "network_mode": "none", "entrypoint": "sh"}
    with running(engine, image, "-c", command, volumes=volumes, **options) as container:
        return outcome(container)


def test_a_server_hands_tritons_driver_out_without_compiling(
    engine: docker.DockerClient, runtime: str, environment: Path
) -> None:
    (library,) = (environment / "lib" / "compiled").iterdir()
    assert b"libcuda.so.1\0" in library.read_bytes(), "it would not find the driver's functions"
    driver = "cat /given/site-packages/triton/backends/nvidia/driver.c"
    assert compile_in(engine, runtime, environment, driver) == (0, "the same\n")


def test_a_server_refuses_to_compile_anything_else(
    engine: docker.DockerClient, runtime: str, environment: Path
) -> None:
    status, output = compile_in(engine, runtime, environment, "echo 'int x;'")
    assert status == 1
    expected = "cc: expected a source that was compiled with the image, found /tmp/x/cuda_utils.c"
    assert output == f"{expected}; this image has no compiler\n"


KEYS = """
from torch._inductor.codecache import torch_key
from vllm import envs
print(torch_key().hex(), sorted((name, str(value)) for name, value in envs.compile_factors().items()))
"""


def test_pipeline_and_runtime_agree_on_the_keys_of_compile_caches(
    engine: docker.DockerClient, runtime: str, pipeline: str
) -> None:
    keys = []
    for image in (pipeline, runtime):
        with running(engine, image, "-c", KEYS, entrypoint="python", network_mode="none") as container:
            status, output = outcome(container)
        assert status == 0, output
        keys.append(output.splitlines()[-1])
    assert keys[0] == keys[1], "the runtime would not find what the pipeline compiled"


def test_the_pipeline_proves_with_the_kernels_that_a_server_without_nvcc_has(
    engine: docker.DockerClient, pipeline: str
) -> None:
    script = "import shutil, pathlib; print(shutil.which('nvcc'), pathlib.Path('/usr/local/cuda/bin/nvcc').exists())"
    with running(engine, pipeline, "-c", script, entrypoint="python") as container:
        assert outcome(container)[1] == "None True\n"
