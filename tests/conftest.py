"""What holds for every test: none fails because the machine is busy, and which share a worker of pytest-xdist."""

from __future__ import annotations

import os
import sys
from functools import cache
from inspect import iscoroutinefunction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
FIRST = ("engines", "images")
PAGES = ROOT / "tests/unit/docs"

# Threads of PyTorch that spin while they wait take the processor from those they wait for, and two workers share two
# cores: training and quantizing take twice the processor's time then. OpenMP reads it when it is loaded, so: here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give the tests of one group to one worker, where they run one after the other and share what they made.

    Real engines would take the processor and the memory from each other; so would containers. Of all others, those of
    one file share their fixtures. (The groups that pytest-xdist itself has do nothing with this pytest.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(ROOT / nodeid.partition("::")[0])

    return Grouped(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Leave out what Python 3.10 says of TLS connections that the other side closed; later versions do not."""
    if sys.version_info < (3, 11):
        config.addinivalue_line("filterwarnings", "ignore:unclosed transport <asyncio.sslproto:ResourceWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests, give those with engines time, and let the longest groups begin, so that no worker waits at the end.

    Raises:
        pytest.UsageError: a plain function is marked as asynchronous, which its plugin would tell only when it ran.
    """
    for item in items:
        if item.path.is_relative_to(PAGES):
            item.add_marker(pytest.mark.house)
        if item.get_closest_marker("asyncio") and not is_asynchronous(item):
            raise pytest.UsageError(f"expected `async def` or no mark `asyncio`, found {item.nodeid}")
        if item.get_closest_marker("engine") and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1200))  # artifacts are made in whichever test comes first
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: FIRST.index(group) if (group := group_of(item.path)) in FIRST else len(FIRST))


def is_asynchronous(item: pytest.Item) -> bool:
    """Tell whether a test is a coroutine, or (as a state machine or an example of hypothesis) holds one."""
    test = getattr(item, "obj", None)
    return iscoroutinefunction(test) or iscoroutinefunction(
        getattr(getattr(test, "hypothesis", None), "inner_test", None)
    )


@cache
def group_of(path: Path) -> str:
    """Tell which tests share a worker with those of a file."""
    if path.is_relative_to(ROOT / "tests/images"):
        return "images"
    return "engines" if "pytest.mark.engine" in path.read_text(encoding="utf-8") else str(path)
