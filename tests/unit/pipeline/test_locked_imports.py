"""Every import of the source has a pin in the lock of each environment in which it runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness.source import imports
from tests.harness.source.imports import ENVIRONMENTS, Import, all_imports, environments_of, imports_of, unpinned


@pytest.mark.house
def test_every_import_is_pinned_in_every_environment_in_which_it_runs() -> None:
    assert unpinned(all_imports()) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import nowhere.at.all", "nowhere.at.all has no pin in trt.txt and trt.unhashed for Python 3.11"),
        ("def late():\n    from nowhere import something", "nowhere has no pin in tool.txt for Python 3.12"),
        ("def late():\n    import importlib\n    importlib.import_module('nowhere')", "nowhere has no pin in vllm.txt"),
        (
            "class A:\n    async def b(self):\n        try:\n            import nowhere\n        finally: pass",
            "cpu.txt",
        ),
        ("if not TYPE_CHECKING:\n    import nowhere", "nowhere has no pin"),
        ("import httpx", "httpx has no pin in trt.txt"),
        ("import fastapi", "fastapi has no pin in tool.txt"),
    ],
)
def test_an_import_without_a_pin_is_found(source: str, found: str) -> None:
    assert found in "\n".join(unpinned(imports_of("runtime/made_up.py", source)))


@pytest.mark.parametrize(
    "source",
    [
        "import json, runtime.artifact.hub\nfrom pipeline import cli",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nowhere",
        "from . import nowhere",
        "import structlog, transformers.utils",
    ],
)
def test_what_needs_no_pin_is_let_through(source: str) -> None:
    assert unpinned(imports_of("runtime/made_up.py", source)) == []


def test_a_name_that_is_not_written_down_cannot_be_imported() -> None:
    with pytest.raises(ValueError, match=r"made_up\.py:2: expected a constant name"):
        imports_of("runtime/made_up.py", "import importlib\nimportlib.import_module(name)")


def places(path: str, package: str) -> set[str]:
    source = [one for one in all_imports() if one.path == path]
    return {place for one in source if one.package == package for place in environments_of(one, source)}


@pytest.mark.house
def test_engines_and_workers_run_where_they_are_installed() -> None:
    assert places("runtime/engines/vllm/contract/life.py", "vllm") == {"vllm", "cpu"}
    assert places("runtime/engines/trt/engine.py", "tensorrt_llm") == {"trt"}
    assert places("pipeline/quantize/vllm.py", "llmcompressor") == {"vllm-quantize", "cpu-quantize"}
    assert places("pipeline/quantize/trt_checkpoint.py", "tensorrt_llm") == {"trt"}
    assert places("runtime/deployment/classifier/model.py", "transformers") == {"vllm", "cpu", "trt", "tool"}


def test_every_environment_of_the_images_is_in_the_table() -> None:
    """bake.hcl says which locks an image's environments are made of."""
    bake = (imports.ROOT / "bake.hcl").read_text("utf-8")
    locks = {lock for stated in re.findall(r'locks = "([^"]*)"', bake) for lock in stated.split()}
    assert locks - {"embedded"} <= ENVIRONMENTS.keys()
    assert {path.stem for path in imports.LOCKS.glob("*.txt")} - {"embedded", "build"} == ENVIRONMENTS.keys()


@pytest.mark.house
def test_one_module_knows_the_transports() -> None:
    users = {one.path for one in all_imports() if one.package in {"httpx", "requests", "urllib3", "httpcore"}}
    assert users == {"runtime/artifact/hub_client.py"}


def test_a_pin_counts_on_the_versions_of_python_that_its_marker_names(tmp_path: Path) -> None:
    old = imports.Pin("exceptiongroup", "1.3", "python_full_version < '3.11'")
    assert [old.fits(python) for python in imports.PYTHONS] == [True, False, False]
    windows = imports.Pin("colorama", "0.4", "sys_platform == 'win32'")
    assert not any(windows.fits(python) for python in imports.PYTHONS)
    assert Import("runtime/a.py", 1, "a.b", None, local=False).package == "a"
