"""One client that does not behave in each module, as its `ATTACK`."""

from __future__ import annotations

import importlib
import pkgutil

from tests.attack.attack import Attack


def attacks() -> dict[str, Attack]:
    """Find all of them, by their names."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {module.ATTACK.name: module.ATTACK for module in modules}
