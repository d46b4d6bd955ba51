"""What peers can make uvicorn's logger say, as often as they like: each such line is told once in a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

INTERVAL_S = 10.0
# uvicorn has a dozen texts; a text made of what a peer sent must not fill the memory.
KINDS = 64


class RepeatFilter(logging.Filter):
    """Passes a text once in `INTERVAL_S`, whatever its arguments are."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._told: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to say it."""
        now, text = self._clock(), str(record.msg)
        if now - self._told.get(text, -INTERVAL_S) < INTERVAL_S:
            return False
        self._told.pop(text, None)
        self._told[text] = now
        if len(self._told) > KINDS:
            del self._told[next(iter(self._told))]
        return True


def install() -> None:
    """Keep uvicorn's logger from being used to fill a disk. Calling it twice changes nothing."""
    logger = logging.getLogger("uvicorn.error")
    if not any(isinstance(known, RepeatFilter) for known in logger.filters):
        logger.addFilter(RepeatFilter())
