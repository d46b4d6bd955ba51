"""The breaker in front of the classifier: who does not answer is not waited for by every turn anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

# Questions in a row without an answer after which nobody waits any more.
MISSES = 3

log = structlog.get_logger(__name__)


class Breaker:
    """Counts the classifier's misses. Open, it means: decide no at once; somebody else asks whether it answers again.

    Args:
        opened: called when it opens.

    Attributes:
        open: whether the classifier is to be left alone.
        answers: that were noted. Who waited too long while others got one waited for those, and not for a classifier
            that hangs: that is no miss.
    """

    def __init__(self, opened: Callable[[], None] = lambda: None) -> None:
        self._opened = opened
        self._misses = 0
        self._opening: asyncio.Future[None] | None = None  # what those wait on who wait for an answer as well
        self.open = False
        self.answers = 0

    def opening(self) -> asyncio.Future[None]:
        """Done as soon as it is open: whoever waits for an answer need not wait any longer. One for all who wait."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_future()
            if self.open:
                self._opening.set_result(None)
        return self._opening

    def missed(self) -> None:
        """Note that a question got no answer in time, or a failure."""
        self._misses += 1
        if self._misses >= MISSES and not self.open:
            self.open = True
            if self._opening is not None and not self._opening.done():
                self._opening.set_result(None)
            log.error("classifier_degraded", misses=self._misses)
            self._opened()

    def answered(self) -> None:
        """Note an answer: all is well."""
        self._misses = 0
        self.answers += 1
        if self.open:
            self.open = False
            self._opening = None
            log.info("classifier_recovered")
