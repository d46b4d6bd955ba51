"""Installing Open MPI must not move CUDA: reproduced without the guard, held with it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import docker
import pytest

from tests.images import bake, stand_in
from tests.images.containers import outcome, running

CUDA_13 = "cuda-cudart-13-0 13.0.96-1\nlibnccl2 2.28.3-1+cuda13.0\n"
LIST_CUDA = "dpkg-query -Wf '${Maintainer}\\t${Package} ${Version}\\n' | grep nvidia.com | cut -f2"
SOURCE = "echo 'deb [trusted=yes] file:/opt/stand-in ./' > /etc/apt/sources.list.d/"


Install = Callable[[str, str], subprocess.CompletedProcess[str]]


@pytest.fixture
def install(bases: None, tmp_path: Path) -> Install:
    """Build an image that installs Open MPI, with the tempting package source under a given name."""

    def build(source: str, how: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "mpi.sh").write_bytes((bake.ROOT / "images" / "mpi.sh").read_bytes())
        (tmp_path / "Dockerfile").write_text(
            f"FROM {stand_in.RUNTIME}\nENV DEBIAN_FRONTEND=noninteractive\n"
            f"RUN {SOURCE}{source}\nCOPY mpi.sh /tmp/mpi.sh\nRUN {how}\nRUN {LIST_CUDA} > /cuda\n"
        )
        command = ["docker", "buildx", "build", "--progress=plain", "--network=host", "--allow=network.host"]
        command += ["--load", "--tag", f"{bake.NAMES}/guard:test", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return build


def cuda(engine: docker.DockerClient, image: str) -> str:
    """The CUDA packages in an image."""
    with running(engine, image, "-c", LIST_CUDA, entrypoint="sh") as container:
        return outcome(container)[1]


def test_without_the_guard_open_mpi_moves_cuda_to_12(engine: docker.DockerClient, install: Install) -> None:
    done = install("cuda-stand-in.list", "apt-get update -qq && apt-get install -y -qq libopenmpi3")
    assert done.returncode == 0, done.stderr[-3000:]
    found = cuda(engine, f"{bake.NAMES}/guard:test")
    assert "cuda-cudart-12-9" in found
    assert "cuda-cudart-13-0" not in found
    assert "+cuda12.9" in found


def test_with_the_guard_cuda_stays_and_debians_mpi_comes(engine: docker.DockerClient, install: Install) -> None:
    done = install("cuda-stand-in.list", "sh /tmp/mpi.sh '' libopenmpi3")
    assert done.returncode == 0, done.stderr[-3000:]
    image = f"{bake.NAMES}/guard:test"
    assert cuda(engine, image) == CUDA_13
    with running(engine, image, "-c", "apt-mark showhold; ls /etc/apt/sources.list.d", entrypoint="sh") as container:
        assert outcome(container)[1].split() == ["cuda-cudart-13-0", "libnccl2", "cuda-stand-in.list"]


def test_a_source_that_is_not_nvidias_by_name_makes_the_build_fail(install: Install) -> None:
    done = install("site.list", "sh /tmp/mpi.sh '' libopenmpi3")
    assert done.returncode != 0
    assert "mpi: expected libopenmpi3 beside the held CUDA packages" in done.stderr


def test_a_base_without_cuda_is_refused(bases: None, tmp_path: Path, engine: docker.DockerClient) -> None:
    script = bake.ROOT / "images" / "mpi.sh"
    volumes = {str(script): {"bind": "/mpi.sh", "mode": "ro"}}
    with running(engine, stand_in.DEBIAN, "sh", "/mpi.sh", "", "libopenmpi3", volumes=volumes) as container:
        status, output = outcome(container)
    assert status == 1
    assert "expected a base image with CUDA packages, found none" in output


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("rm /usr/local/cuda-13.0/lib64/libcudart.so.13; ldconfig", "libcudart.so.13: expected it to load, found"),
        ("rm /usr/lib/*/libmpi.so.40*; ldconfig", "libmpi.so.40: expected it to load, found"),
        (
            "printf '#!/bin/sh\\necho release 12.9, V12.9.86' > /usr/bin/nvcc; chmod +x /usr/bin/nvcc",
            "nvcc: expected CUDA 13.0",
        ),
        (":", ""),
    ],
    ids=["cudart", "mpi", "nvcc", "whole"],
)
def test_the_stack_check_says_what_is_wrong(
    engine: docker.DockerClient, runtime: str, damage: str, message: str
) -> None:
    command = f"{{ {damage}; }}; python /opt/yap/bin/preflight.py cpu"
    with running(engine, runtime, "-c", command, entrypoint="sh", user="0") as container:
        status, output = outcome(container)
    assert status == (78 if message else 0)
    assert output.count("stack:") == bool(message)
    assert message in output


def test_the_stack_check_notices_a_torch_for_another_cuda(engine: docker.DockerClient, runtime: str) -> None:
    version = "/opt/yap/venv/lib/python*/site-packages/torch/version.py"
    command = f"echo \"cuda: Optional[str] = '12.8'\" | tee -a {version}; python /opt/yap/bin/preflight.py vllm --start"
    with running(engine, runtime, "-c", command, entrypoint="sh", user="0") as container:
        status, output = outcome(container)
    assert status == 78
    assert "torch: expected a build for CUDA 13, found 12.8; pip may have replaced it" in output
    assert "driver: expected NVIDIA 580 or newer, found none; run the container with --gpus all" in output


@pytest.mark.parametrize(("options", "told"), [("", True), ("exec", False)])
def test_a_temporary_folder_that_libraries_cannot_load_from_is_told(
    engine: docker.DockerClient, runtime: str, options: str, told: bool
) -> None:
    command = ["/opt/yap/bin/preflight.py", "vllm", "--start"]
    with running(engine, runtime, *command, entrypoint="python", tmpfs={"/tmp": options}) as container:
        output = outcome(container)[1]
    message = "/tmp: expected it to allow executables, found noexec; run the container with --tmpfs /tmp:exec"
    assert (message in output) == told
