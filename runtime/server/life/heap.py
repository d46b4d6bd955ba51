"""The heap: what is loaded stays, so that nobody looks through it for garbage.

The libraries are a million objects with hardly any garbage among them. While they are imported, the collector goes
through all that is there again and again: a fifth of the import's time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is looked for meanwhile; afterwards as before."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def keep() -> None:
    """Exempt all that is there from garbage collection, for ever, and in every process that is forked from this one.

    The garbage among it stays too: some megabytes after an import.
    """
    gc.freeze()


def freeze_heap() -> None:
    """Exempt what is loaded from garbage collection: it stays. Call when everything is loaded.

    Going through it would hold up every turn now and then. Small collections come less often too: turns make hardly any
    cycles. The middle ones do not: each goes through five times ten thousand objects at most, and holds everybody up
    meanwhile.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 5, 20)
