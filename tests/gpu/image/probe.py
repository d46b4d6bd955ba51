"""Tells from inside a container who one is, what one may write, and what there is to run.

Run by the image's own Python, as `python -c`. Exit status 1 where it is not as an image promises.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path

COMPILERS = ("cc1", "gcc", "g++", "c++", "clang", "tcc", "nvcc", "cicc", "ld", "as", "make")
READ_ONLY = ("/", "/opt/yap", "/opt/yap/venv/lib", "/usr/bin", "/etc", "/dev", "/sys")
WRITABLE = ("/tmp", "/cache", "/dev/shm")


def may_write(folder: str) -> str | None:
    """Return why a file cannot be made there; none where it can."""
    path = Path(folder) / "yap-probe"
    try:
        path.touch()
    except OSError as error:
        return os.strerror(error.errno or 0)
    path.unlink()
    return None


def pythons() -> list[str]:
    """Return the interpreters that the path finds."""
    folders = {Path(folder).resolve() for folder in os.environ["PATH"].split(":") if Path(folder).is_dir()}
    found = {path.resolve() for folder in folders for path in folder.glob("python3*") if os.access(path, os.X_OK)}
    return sorted(map(str, found))


def main() -> None:
    """Print what is seen, and what of it is wrong."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    refused = {folder: may_write(folder) for folder in (*READ_ONLY, *WRITABLE)}
    compilers = [path for name in COMPILERS if (path := shutil.which(name))]
    seen = {
        "user": [os.getuid(), os.getgid(), os.getgroups()],
        "privileges": {name: status[name].strip() for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")},
        "processes": sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")),
        "refused": refused,
        "compilers": compilers,
        "pythons": pythons(),
        "python": [platform.python_version(), sys.executable, sys.path],
        "system": [platform.freedesktop_os_release()["PRETTY_NAME"], *platform.libc_ver(), platform.release()],
        "devices": sorted(str(path) for path in Path("/dev").rglob("*")),
    }
    wrong = [f"{folder}: expected to be refused" for folder in READ_ONLY if refused[folder] is None]
    wrong += [f"{folder}: expected to be writable, found {refused[folder]}" for folder in WRITABLE if refused[folder]]
    wrong += [f"{path}: expected no compiler" for path in compilers]
    if os.getuid() == 0 or int(seen["privileges"]["CapEff"], 16):  # type: ignore[index]
        wrong.append("expected a user without privileges")
    print(json.dumps(seen | {"wrong": wrong}, indent=1))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
