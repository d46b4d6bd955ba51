"""transformers looks through the files of its models once: it finds the same, and is left as it was."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest

from runtime.engines.imports import LOOK, MODULE, look_once, looking_once

ROOT = Path(__file__).resolve().parents[4]

IMPORTS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import inspect, os
from runtime.engines.imports import LOOK, looking_once

looked = []
scandir = os.scandir
def look(path):
    if sys._getframe(1).f_code.co_name == "{LOOK}":
        looked.append(os.fspath(path))
    return scandir(path)

os.scandir = look
before = list(sys.meta_path)
with looking_once():
    import transformers
assert sys.meta_path == before
print(len(looked), len(set(looked)))

from transformers.utils import import_utils
assert "def {LOOK}" in inspect.getsource(import_utils), "it knows where it comes from"
assert import_utils.__loader__ is import_utils.__spec__.loader
assert type(import_utils.__loader__).__name__ == "SourceFileLoader"

models = os.path.join(os.path.dirname(transformers.__file__), "models")
import importlib.util
spec = importlib.util.spec_from_file_location("theirs", import_utils.__file__, submodule_search_locations=None)
theirs = importlib.util.module_from_spec(spec)
theirs.__package__ = "transformers.utils"
spec.loader.exec_module(theirs)
assert import_utils.{LOOK}(models) == theirs.{LOOK}(models), "what is found is what it would find"
llama = os.path.join(models, "llama")
assert import_utils.{LOOK}(os.path.join(llama, "__init__.py")) == theirs.{LOOK}(llama)
from transformers import LlamaConfig
"""


def test_it_looks_once_and_finds_what_it_would_find() -> None:
    pytest.importorskip("transformers")
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    looked, folders = map(int, done.stdout.split()[-2:])
    assert looked == folders > 100, "each folder once"


def test_one_that_looks_in_another_way_is_left_alone() -> None:
    module = ModuleType(MODULE)
    look_once(module)
    assert not hasattr(module, LOOK)

    def look(path: str) -> str:
        return path

    setattr(module, LOOK, look)
    look_once(module)
    assert getattr(module, LOOK) is look


def test_a_file_stands_for_its_folder(tmp_path: Path) -> None:
    asked: list[str] = []

    @lru_cache
    def look(path: str) -> int:
        asked.append(path)
        return len(asked)

    module = ModuleType(MODULE)
    setattr(module, LOOK, look)
    look_once(module)
    (tmp_path / "__init__.py").touch()
    again = getattr(module, LOOK)
    assert again(tmp_path) == again(str(tmp_path)) == again(tmp_path / "__init__.py") == 1
    assert asked == [str(tmp_path)]


def test_nothing_stays_where_importing_fails() -> None:
    before = list(sys.meta_path)

    def fail() -> None:
        with looking_once():
            assert sys.meta_path != before
            raise ImportError("no engine here")

    with pytest.raises(ImportError):
        fail()
    assert sys.meta_path == before
