"""What the files of an artifact are, as far as it matters who reads them: by their names, as their readers choose them.

Code is loaded from one place alone, the compile cache. Elsewhere it is dead: files of Python travel with some models,
and no loader here is allowed to run them. Pickles run what they say when they are loaded, and are refused.
"""

from __future__ import annotations

import re

# Read by engines where they lie, as large as they are: numbers, and what a compiled engine holds.
WEIGHTS = (".safetensors", ".engine")
# Formats that PyTorch, joblib and their like unpickle.
PICKLES = (".bin", ".pt", ".pt2", ".pth", ".ckpt", ".pkl", ".pickle", ".dill", ".joblib")
# Of these, what holds nothing but numbers, and a list of them that its reader holds against the file's length.
NUMBERS = (".safetensors",)
_CODE = re.compile(r".*\.(py|pyc|pyo|pyd|pyz|so(\.\d+)*|dll|dylib|sh|exe)", re.DOTALL)


def is_weights(path: str) -> bool:
    """Whether a file holds a model's weights."""
    return path.casefold().endswith(WEIGHTS)


def is_numbers(path: str) -> bool:
    """Whether a file can do nothing but be read as numbers, whoever wrote it: it may be read before it is proven."""
    return path.casefold().endswith(NUMBERS)


def is_pickle(path: str) -> bool:
    """Whether a file's usual reader would unpickle it."""
    return path.casefold().endswith(PICKLES)


def is_code(path: str) -> bool:
    """Whether a file is code that an interpreter, a loader or a shell would run."""
    return _CODE.fullmatch(path.casefold()) is not None or "__pycache__" in path.casefold().split("/")
