"""What holds for every test: none fails because the machine is busy, and which share a worker of pytest-xdist."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
ENGINES = "engines"
FIRST = (ENGINES, "images")

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say for `--dist loadgroup` which tests run one after the other, in one worker, and share what they made.

    Real engines would take the processor and the memory from each other; so would containers. Of all others, those of
    one file share their fixtures.
    """
    for item in items:
        group = _group(item)
        item.add_marker(pytest.mark.xdist_group(group))
        if group == ENGINES and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1200))  # artifacts are made in whichever test comes first
    if config.getoption("loadgroup", False):
        # The longest groups begin, so that no worker waits for them at the end.
        items.sort(key=lambda item: FIRST.index(_group(item)) if _group(item) in FIRST else len(FIRST))


def _group(item: pytest.Item) -> str:
    if item.get_closest_marker("engine"):
        return ENGINES
    return "images" if item.path.is_relative_to(TESTS / "images") else str(item.path.relative_to(TESTS))
