"""Stop texts: where a reply ends because it says one of them."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Cuts a streamed reply before the first stop text that it says.

    What may be the beginning of a stop text is held back until more is known. The stop text that is whole first counts;
    of two that become whole with the same character, the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""  # said and not given out: it may be the beginning of a stop text
        self.stopped = False

    def feed(self, text: str) -> str:
        """Take a piece of the reply; return what is certainly part of it."""
        if self.stopped:
            return ""
        seen = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := seen.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return seen[: min(ends)[1]]
        keep = max((_overlap(seen, stop) for stop in self._stops), default=0)
        self._held = seen[len(seen) - keep :]
        return seen[: len(seen) - keep]

    def finish(self) -> str:
        """Return what was held back: the reply has ended without saying the rest of a stop text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` that `text` ends with."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at = text.find(stop[0], at + 1)
    return 0
