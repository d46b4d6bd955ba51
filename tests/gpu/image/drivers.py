"""What NVIDIA's container toolkit would bring from the host into a container: the driver's libraries and its tool.

For the capabilities `compute` and `utility`, which an image asks for unless it says otherwise.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

LIBRARIES = (
    *("libnvidia-ml", "libnvidia-cfg", "libnvidia-nscq"),
    *("libcuda", "libcudadebugger", "libnvidia-opencl", "libnvidia-gpucomp", "libnvidia-ptxjitcompiler"),
    *("libnvidia-fatbinaryloader", "libnvidia-allocator", "libnvidia-compiler", "libnvidia-pkcs11"),
    *("libnvidia-pkcs11-openssl3", "libnvidia-nvvm", "libnvidia-nvvm70", "libnvidia-tileiras"),
)
PROGRAMS = ("nvidia-smi",)
FOLDERS = ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64")
SOURCE = re.compile(r"^(lib[\w-]+)\.so(\.[\d.]+)?$")
# Where the toolkit puts them in a Debian or an Ubuntu.
TARGET = "usr/lib/x86_64-linux-gnu"


def told_by_the_linker() -> list[Path]:
    """Return the folders of the 64-bit libraries that the host's dynamic linker knows."""
    command = shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if command is None:
        return []
    listing = subprocess.run([command, "-p"], capture_output=True, text=True, check=False).stdout
    found = re.findall(r"\(.*x86-64.*\) => (/\S+)$", listing, re.MULTILINE)
    return list(dict.fromkeys(Path(path).parent for path in found))


def libraries(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the driver's libraries that lie there, by the name that each has in a container; the first folder wins.

    Real files, by their own names: of `libcuda.so.1` and `libcuda.so.580.1`, the latter. What stands in for a library
    while others are linked against it is none.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for folder in folders:
        here: dict[str, Path] = {}
        for path in sorted(folder.glob("lib*.so*")):
            name = SOURCE.match(path.name)
            if name is None or name[1] not in LIBRARIES or name[1] in seen or not path.is_file():
                continue
            real = path.resolve()
            if real.parent.name != "stubs":
                here[real.name] = real
        seen |= {name.partition(".so")[0] for name in here}
        found |= here
    return found


def lay(root: Path, folders: Iterable[Path] | None = None) -> list[str]:
    """Copy the driver into a root file system, let its linker find it, and return the names of what came.

    Raises:
        FileNotFoundError: there is no driver.
    """
    places = [*map(Path, FOLDERS), *told_by_the_linker()] if folders is None else list(folders)
    found = libraries(places)
    target = root / TARGET
    target.mkdir(parents=True, exist_ok=True)
    for name, path in found.items():
        shutil.copy(path, target / name)
        (target / name).chmod(0o755)
    if not any(name.startswith("libcuda.so.") for name in found):
        raise FileNotFoundError(
            f"libcuda.so.1: expected the driver in one of {', '.join(map(str, places))}, found none"
        )
    if not (target / "libcuda.so").is_symlink():
        (target / "libcuda.so").symlink_to("libcuda.so.1")
    programs = [path for name in PROGRAMS if (path := shutil.which(name, path="/usr/local/nvidia/bin:/usr/bin"))]
    for program in programs:
        shutil.copy(program, root / "usr/bin")
    # The image's own, which makes the links that the libraries' own names ask for.
    subprocess.run(["chroot", str(root), "/sbin/ldconfig"], check=True)
    return sorted([*found, *(Path(program).name for program in programs)])
