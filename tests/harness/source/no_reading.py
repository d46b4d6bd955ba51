"""A disk that may not be read, for code that says that it is pure."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

SYSTEM_CALLS = ("open", "stat", "lstat", "listdir", "scandir", "access", "readlink", "mkdir", "getcwd", "statvfs")


PATH_METHODS = (
    *("exists", "is_file", "is_dir", "open", "iterdir", "stat", "resolve", "absolute", "expanduser", "home", "cwd"),
    *("glob", "rglob", "read_text", "read_bytes", "write_text", "write_bytes"),
)


class ReadingError(AssertionError):
    """Something was read that had to be passed in."""


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(*arguments: object, **_: object) -> Any:
        raise ReadingError(f"{name}{arguments!r}")

    return refuse


class _NoEnvironment:
    """Stands for `os.environ`; whatever is asked of it is refused."""

    def __getattr__(self, name: str) -> Any:
        raise ReadingError(f"os.environ.{name}")

    def __getitem__(self, name: str) -> Any:
        raise ReadingError(f"os.environ[{name!r}]")

    def __contains__(self, name: object) -> bool:
        raise ReadingError(f"{name!r} in os.environ")


@contextlib.contextmanager
def no_reading() -> Iterator[None]:
    """Refuse to open, list or look at a file, to ask where the current or the home folder is, or for a variable."""
    with contextlib.ExitStack() as stack:
        for name in SYSTEM_CALLS:
            stack.enter_context(mock.patch.object(os, name, _refuse(f"os.{name}")))
        for module in (builtins, io):
            stack.enter_context(mock.patch.object(module, "open", _refuse("open")))
        for name in PATH_METHODS:
            stack.enter_context(mock.patch.object(pathlib.Path, name, _refuse(f"Path.{name}")))
        stack.enter_context(mock.patch.object(os, "environ", _NoEnvironment()))
        stack.enter_context(mock.patch.object(os, "getenv", _refuse("os.getenv")))
        yield
