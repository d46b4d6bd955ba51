"""The probe of a classifier that did not answer."""

from __future__ import annotations

import asyncio
import contextlib

from runtime.deployment.breaker import Breaker
from runtime.deployment.models import Classifier
from runtime.host.supervision import contained
from runtime.host.timeouts import within

# What it is asked, and how often.
PROBE = "hello"
PROBE_LEAST_S, PROBE_MOST_S = 0.25, 5.0


async def probe(classifier: Classifier, breaker: Breaker, timeout: float) -> None:
    """Ask a classifier until it answers, on nobody's time but this task's.

    Args:
        classifier: that did not answer.
        breaker: told that it does.
        timeout: seconds that it has for each answer.
    """
    pause = min(PROBE_MOST_S, max(PROBE_LEAST_S, timeout))
    while breaker.open:
        await asyncio.sleep(pause)
        with contextlib.suppress(Exception):  # it was told when the breaker opened
            await within(timeout, contained(lambda: classifier.decide((), PROBE)))
            breaker.answered()
