"""What tests of the log change, and give back."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from runtime.host.log_writer import LogWriter


@pytest.fixture
def log_restored() -> Iterator[None]:
    """The root logger and structlog are as before."""
    root = logging.getLogger()
    before, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    yield
    for handler in list(root.handlers):
        if handler not in before:
            root.removeHandler(handler)
            if isinstance(handler, LogWriter):
                handler.end()
    for handler in before:
        if handler not in root.handlers:
            root.addHandler(handler)
    root.setLevel(level)
    logging.raiseExceptions = raising
    structlog.reset_defaults()
