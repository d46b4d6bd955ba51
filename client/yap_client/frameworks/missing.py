"""A framework that is not there: what its adapter says to who imports it."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def missing(adapter: str, module: str, package: str, python: tuple[int, int], wrong: ImportError) -> ImportError:
    """Return the error of an adapter whose framework cannot be imported.

    Args:
        adapter: its name, which is the extra's too.
        module: the framework's module.
        package: the package that has it, and from which version on.
        python: the Python that the package needs.
        wrong: what importing it said.
    """
    needed, here = ".".join(map(str, python)), ".".join(map(str, sys.version_info[:3]))
    text = f"yap_client.{adapter} needs {package} or later, on Python {needed} or later: "
    if sys.version_info < python:
        text += f"this is Python {here}"
    elif _is_there(module):
        text += (
            f"another version is installed, or not all of it ({wrong}); pip install --upgrade 'yap-client[{adapter}]'"
        )
    else:
        text += f"it is not installed; pip install 'yap-client[{adapter}]', from a checkout './client[{adapter}]'"
    return type(wrong)(text, name=wrong.name, path=wrong.path)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
