"""What is found out of this machine, without importing what takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.host import machine

ROOT = Path(__file__).resolve().parents[4]
ASK = """
import sys
from runtime.host.machine import _cuda_of_torch as ask
print(ask(sys.argv[1]), "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("version", "files", "found"),
    [
        ("2.11.0+cu130", {}, "13.0"),
        ("2.11.0", {"version.py": "from typing import Optional\ncuda: Optional[str] = '13.0'\n"}, "13.0"),
        ("2.11.0", {"version.py": "cuda = None\n"}, "None"),
        ("2.11.0+cpu", {"version.py": "debug = False\n"}, "None"),
        ("2.11.0", {}, "None"),
        ("2.11.0", None, "None"),
    ],
)
def test_the_cuda_of_torch_is_known_without_torch(
    tmp_path: Path, version: str, files: dict[str, str] | None, found: str
) -> None:
    (tmp_path / "runtime").symlink_to(ROOT / "runtime")
    if files is not None:
        (tmp_path / "torch").mkdir()
        for name, text in ({"__init__.py": "1/0"} | files).items():
            (tmp_path / "torch" / name).write_text(text)
    # Without this environment's own packages, where torch may lie.
    command = [sys.executable, "-S", "-c", ASK, version]
    told = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.split() == [found, "False"]


def test_the_machine_is_looked_at_once_for_what_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def facts() -> tuple[tuple[machine.Gpu, ...], str, str]:
        looks.append(len(looks))
        return (machine.Gpu("NVIDIA H200", 90, 141 << 30, len(looks)),), "580.65.06", "13.0"

    monkeypatch.setattr(machine, "_nvml_facts", facts)
    monkeypatch.setattr(machine, "_known", [])
    monkeypatch.delenv(machine.VISIBLE, raising=False)
    assert machine.described() is machine.described()
    assert len(looks) == 1
    child = os.fork()
    if not child:
        os._exit(0 if machine.described().gpus[0].free_bytes == 1 and len(looks) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert machine.describe().gpus[0].free_bytes == 2, "what changes is looked at"
    assert machine.described().gpus[0].free_bytes == 2
    monkeypatch.setenv(machine.VISIBLE, "1")
    assert machine.described().gpus[0].free_bytes == 3, "these are other GPUs"
