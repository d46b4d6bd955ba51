"""The rows of a table in the documents that a test reproduces: `tests/unit/docs/test_scaling_page.py` compares both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Test = TypeVar("Test", bound=Callable[..., Any])


def reproduces(*rows: str) -> Callable[[Test], Test]:
    """Say which rows of the table in docs/scaling.md a test reproduces, by their first cells."""
    if not rows:
        raise ValueError("a test reproduces at least one row")
    return lambda test: test
