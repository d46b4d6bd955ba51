"""What the pipeline finds to work with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.plan import hardware
from pipeline.plan.hardware import describe, find_quantizer

NEEDS = ("llmcompressor",)


def interpreter(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_named_interpreter_with_llm_compressor_is_taken(tmp_path: Path) -> None:
    python = interpreter(tmp_path / "python", """echo '{"llmcompressor": "0.14", "torch": "2.13"}'""")
    found = find_quantizer(python, NEEDS)
    assert found is not None
    assert (found.python, found.packages) == (python, {"llmcompressor": "0.14", "torch": "2.13"})


@pytest.mark.parametrize("script", ["echo '{}'", "echo nonsense", "exit 3", """echo '{"torch": "2.13"}'"""])
def test_an_interpreter_without_it_is_none(tmp_path: Path, script: str) -> None:
    assert find_quantizer(interpreter(tmp_path / "python", script), NEEDS) is None


def test_what_cannot_be_run_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    assert find_quantizer(tmp_path / "missing", NEEDS) is None
    assert find_quantizer(tmp_path / "file", NEEDS) is None


def test_this_interpreter_is_taken_where_llm_compressor_lies_beside_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hardware, "PROJECT", tmp_path)
    monkeypatch.setattr(hardware.machine, "installed_packages", lambda: {"llmcompressor": "1", "vllm": "2"})
    found = find_quantizer(None, NEEDS)
    assert found is not None
    assert found.python == Path(sys.executable)


def test_describing_needs_no_folder_and_makes_none(tmp_path: Path) -> None:
    here = describe(tmp_path / "not" / "there" / "yet", tmp_path / "no-python", NEEDS)
    assert here.free_disk > 0
    assert here.cores >= 1
    assert here.quantizer is None
    assert list(tmp_path.iterdir()) == []
