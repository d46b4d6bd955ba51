"""GPUs by name: each is found however it is written, and what the images bring is as the locks say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.lanes import gpus
from runtime.host.machine import Machine

LOCKS = Path(__file__).parents[4] / "images/locks"


@pytest.mark.parametrize("name", gpus.GPUS)
def test_a_name_is_found_however_it_is_written(name: str) -> None:
    for written in (name, name.lower(), name.replace("-", " "), f" NVIDIA {name.replace('-', '_')} "):
        assert gpus.find(written) is gpus.GPUS[name]


def test_a_name_that_means_several_or_none_is_not_guessed() -> None:
    assert gpus.find("A100") is None
    assert gpus.find("H100") is gpus.GPUS["H100-80GB"]
    assert gpus.find("") is None
    assert gpus.find("V100") is None


def test_memory_is_at_most_what_the_name_says() -> None:
    for name, gpu in gpus.GPUS.items():
        said = int(re.findall(r"(\d+)GB$", name)[0])
        assert 0.92 * said <= gpu.memory_bytes / gpus.GIB <= said


def test_packages_are_those_of_the_locks() -> None:
    for package, version in gpus.PACKAGES.items():
        texts = [path.read_text("utf-8") for path in LOCKS.glob("*") if path.is_file()]
        pins = {pin for text in texts for pin in re.findall(rf"^{package}==(\d[\w.]*)", text, re.M)}
        assert pins == {version}


def test_a_machine_elsewhere_has_the_gpu_as_often_as_it_is_asked_for() -> None:
    gpu = gpus.GPUS["H200-141GB"]
    made = gpus.machine_with(gpu, 4, Machine(memory_bytes=5, packages={"torch": "1"}))
    assert made.gpus == (gpu,) * 4
    assert made.sm == 90
    assert made.packages == {"torch": "1", **gpus.PACKAGES}
