"""The frame of every command: one event loop, errors in one line, an exit status that tells."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine

from yap_client import YapError

from .ending import ending


def run(main: Coroutine[None, None, bool]) -> None:
    """Run a command to its end and exit: 0 when it returned true, 1 when anything failed, 130 when interrupted."""
    with ending():
        try:
            ok = asyncio.run(main)
        except YapError as error:
            print(f"error: {error}", file=sys.stderr)
            ok = False
        sys.exit(0 if ok else 1)
