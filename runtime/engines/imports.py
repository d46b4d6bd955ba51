"""Imports that take less time: transformers looks through the files of all its models once, and not twice.

It keeps what it found in a cache for 128 folders, has more than 500, and asks for all of them again while it is
imported: a third of a second, of some six that importing vLLM takes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

# Where transformers looks through a folder, and that function's name.
MODULE, LOOK = "transformers.utils.import_utils", "create_import_structure_from_path"


@contextmanager
def looking_once() -> Iterator[None]:
    """Let transformers, where it is imported inside, look through each folder once."""
    finder = _Finder()
    # Other lists, and not this one changed: another thread may go through it now, and would pass over a finder.
    sys.meta_path = [finder, *sys.meta_path]
    try:
        yield
    finally:
        sys.meta_path = [other for other in sys.meta_path if other is not finder]


class _Finder(MetaPathFinder):
    """Finds one module where it would be found anyway, and has it changed when it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Changing(spec.loader)
        return spec


class _Changing(Loader):
    """Loads as another loader does, which the module names as its own afterwards."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        look_once(module)


def look_once(module: ModuleType) -> None:
    """Give a module's function another cache: for all folders, whether named by a path, its text or a file inside."""
    try:
        look: Callable[[str], Any] = getattr(module, LOOK).__wrapped__
    except AttributeError as error:
        log.info("transformers looks through its models in another way: %r", error)
        return
    once = cache(look)

    @wraps(look)
    def look_by_folder(module_path: str | Path) -> Any:  # noqa: ANN401 - transformers' own
        path = Path(module_path)
        return once(str(path.parent if path.is_file() else path))

    setattr(module, LOOK, look_by_folder)
