"""A base image made on the spot, where no registry can be reached.

Debian with packages that have the names, the maintainer and the versions of CUDA 13.0's, and a local package source
that offers an Open MPI whose dependency brings CUDA 12: the downgrade that the images guard against.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

RELEASE = "bookworm"
PYTHON_VERSION = "3.11"
MPI_VERSION = "4.1.4-3+b1"
DEBIAN = f"yap-test/debian:{RELEASE}"
# Packages are not the same bytes when built again, so what is there is kept for as long as this file stays the same.
EDITION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
DEVEL = f"yap-test/stand-in:devel-{EDITION}"
RUNTIME = f"yap-test/stand-in:runtime-{EDITION}"

# What `cudaRuntimeGetVersion` answers in CUDA 13.0, as NVIDIA encodes it: 1000 x major + 10 x minor.
CUDART_13_0 = "int cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }\n"
NVCC_13_0 = '#!/bin/sh\necho "Cuda compilation tools, release 13.0, V13.0.88"\n'


@dataclass(frozen=True, slots=True)
class Package:
    """One Debian package: its control fields and its files by absolute path."""

    name: str
    version: str
    fields: tuple[str, ...] = ()
    files: tuple[tuple[str, bytes], ...] = ()
    links: tuple[tuple[str, str], ...] = ()

    def build(self, folder: Path) -> Path:
        """Write the package into the folder."""
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            root.chmod(0o755)
            for path, content in self.files:
                target = root / path.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                target.chmod(0o755)
            for path, to in self.links:
                link = root / path.lstrip("/")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(to)
            control = root / "DEBIAN" / "control"
            control.parent.mkdir(parents=True)
            lines = (
                f"Package: {self.name}",
                f"Version: {self.version}",
                "Architecture: amd64",
                "Maintainer: cudatools <cudatools@nvidia.com>",
                *self.fields,
                "Description: stand-in",
            )
            control.write_text("\n".join(lines) + "\n")
            out = folder / f"{self.name}_{self.version}_amd64.deb"
            run("dpkg-deb", "--build", "--root-owner-group", "-Zgzip", str(root), str(out))
        return out


def run(*command: str, folder: Path | None = None) -> str:
    """Run a command; its output, which a failure shows."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} exited {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
    return done.stdout


def cuda_13(library: bytes) -> tuple[Package, ...]:
    """What NVIDIA's `base` images hold, by name."""
    return (
        Package(
            "cuda-cudart-13-0",
            "13.0.96-1",
            files=(
                ("/usr/local/cuda-13.0/lib64/libcudart.so.13", library),
                ("/etc/ld.so.conf.d/cuda.conf", b"/usr/local/cuda/lib64\n"),
            ),
            links=(("/usr/local/cuda", "cuda-13.0"),),
        ),
        Package("libnccl2", "2.28.3-1+cuda13.0"),
    )


def toolkit_13() -> tuple[Package, ...]:
    """What the `devel` images add."""
    return (Package("cuda-nvcc-13-0", "13.0.88-1", files=(("/usr/local/cuda-13.0/bin/nvcc", NVCC_13_0.encode()),)),)


def downgrade() -> tuple[Package, ...]:
    """An Open MPI newer than Debian's, built against CUDA 12, which pushes CUDA 13 out."""
    return (
        Package("cuda-cudart-12-9", "12.9.79-1", fields=("Conflicts: cuda-cudart-13-0",)),
        Package("libnccl2", "2.99.1-1+cuda12.9", fields=("Depends: cuda-cudart-12-9",)),
        Package("libopenmpi3", "4.1.9-1", fields=("Depends: libnccl2 (>= 2.99)",)),
    )


def exists(image: str) -> bool:
    """Whether the engine has the image."""
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


def make_debian() -> None:
    """A bare Debian image, by debootstrap and `docker import`: half a minute, once."""
    if exists(DEBIAN):
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "root"
        # Only root may make devices and read what they make; the folder that is left behind is root's as well.
        become = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
        run(*become, "debootstrap", "--variant=minbase", RELEASE, str(root))
        pack = " ".join([*become, "tar", "-C", str(root), "--exclude=./var/cache/apt/archives/*.deb", "-c", "."])
        run("sh", "-c", f"{pack} | docker import - {DEBIAN}")
        run(*become, "rm", "-rf", str(root))


DOCKERFILE = """\
FROM {debian} AS runtime
COPY source /opt/stand-in
COPY runtime /tmp/packages
RUN dpkg -i /tmp/packages/*.deb && rm -rf /tmp/packages && ldconfig
FROM runtime AS devel
ENV PATH=/usr/local/cuda/bin:$PATH
COPY devel /tmp/packages
RUN dpkg -i /tmp/packages/*.deb && rm -rf /tmp/packages
"""


def make() -> None:
    """Both stand-in bases, from packages made here."""
    if exists(DEVEL) and exists(RUNTIME):
        return
    make_debian()
    with tempfile.TemporaryDirectory() as name:
        context = Path(name)
        for folder in ("source", "runtime", "devel"):
            (context / folder).mkdir()
        (context / "cudart.c").write_text(CUDART_13_0)
        run("gcc", "-shared", "-fPIC", "-o", "cudart.so", "cudart.c", folder=context)
        for package in cuda_13((context / "cudart.so").read_bytes()):
            package.build(context / "runtime")
        for package in toolkit_13():
            package.build(context / "devel")
        for package in downgrade():
            package.build(context / "source")
        listing = run("dpkg-scanpackages", "--multiversion", ".", folder=context / "source")
        (context / "source" / "Packages").write_text(listing)
        (context / "Dockerfile").write_text(DOCKERFILE.format(debian=DEBIAN))
        for stage, image in (("runtime", RUNTIME), ("devel", DEVEL)):
            run("docker", "buildx", "build", "--quiet", "--load", "--target", stage, "--tag", image, str(context))


if __name__ == "__main__":
    make()
