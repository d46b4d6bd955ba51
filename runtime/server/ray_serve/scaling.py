"""How many replicas are wanted, by the turns that run and the slots that are held.

Ray's controller is given this module by value, and calls the policy ten times a second: it imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

# A router that hashes keys fills some servers before others: none is full while so much of all slots is held.
HELD_AT_MOST = 0.8
TURNS, HELD, SLOTS = "turns", "slots_held", "slots"


class Seen(Protocol):
    """What Ray tells a policy (`ray.serve.config.AutoscalingContext`), as far as this one reads it."""

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[object, float]] | None:
        """The means of each figure, by replica."""

    @property
    def running_replicas(self) -> Iterable[object]:
        """Those that take turns: not those that load or leave."""

    @property
    def target_num_replicas(self) -> int:
        """What was decided last."""


class ByTurns:
    """Wants as many replicas as keep each at `turns` running turns, and at `HELD_AT_MOST` of its slots.

    Between the bounds and with the delays of Ray's own configuration, which Ray applies to what this returns.
    """

    def __init__(self, turns: float) -> None:
        """At most `turns` turns on average in each replica's engine, running and waiting."""
        if not turns > 0:
            raise ValueError(f"turns: expected more than 0, found {turns}")
        self._turns = turns

    def __call__(self, seen: Seen) -> tuple[float, dict[str, object]]:
        """Return how many are wanted, and no state.

        A replica that has not told its figures yet has none; while nobody has, nothing is changed.
        """
        told, running = seen.aggregated_metrics or {}, set(seen.running_replicas)
        figures = {
            name: [value for replica, value in told.get(name, {}).items() if replica in running]
            for name in (TURNS, HELD, SLOTS)
        }
        if not figures[SLOTS]:
            return seen.target_num_replicas, {}
        slots = sum(figures[SLOTS]) / len(figures[SLOTS])
        return max(sum(figures[TURNS]) / self._turns, sum(figures[HELD]) / (HELD_AT_MOST * slots)), {}
