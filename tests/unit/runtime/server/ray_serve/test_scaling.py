"""How many replicas Ray is told to have."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.server.ray_serve import scaling
from runtime.server.ray_serve.scaling import HELD, HELD_AT_MOST, SLOTS, TURNS, ByTurns

SLOTS_EACH = 64


@dataclass
class Told:
    """What Ray tells."""

    aggregated_metrics: dict[str, dict[object, float]] | None
    running_replicas: list[object] = field(default_factory=list)
    target_num_replicas: int = 2


def told(*replicas: tuple[float, float], **values: object) -> Told:
    """Figures of replicas, turns and held slots of each."""
    metrics: dict[str, dict[object, float]] = {
        TURNS: {number: one[0] for number, one in enumerate(replicas)},
        HELD: {number: one[1] for number, one in enumerate(replicas)},
        SLOTS: dict.fromkeys(range(len(replicas)), SLOTS_EACH),
    }
    return Told(metrics, list(range(len(replicas))), **values)  # type: ignore[arg-type]


figures = st.lists(st.tuples(st.floats(0, 500), st.integers(0, SLOTS_EACH)), min_size=1, max_size=20)


@given(replicas=figures, turns=st.floats(0.5, 300))
def test_so_many_replicas_have_no_more_than_they_shall(replicas: list[tuple[float, float]], turns: float) -> None:
    wanted, state = ByTurns(turns)(told(*replicas))
    assert state == {}
    number = max(1, math.ceil(wanted - 1e-9))
    assert sum(one[0] for one in replicas) / number <= turns * (1 + 1e-6)
    assert sum(one[1] for one in replicas) / number <= HELD_AT_MOST * SLOTS_EACH * (1 + 1e-6)
    if number > 1:  # and one less would not do
        fewer = number - 1
        assert sum(one[0] for one in replicas) / fewer > turns * (1 - 1e-6) or sum(
            one[1] for one in replicas
        ) / fewer > HELD_AT_MOST * SLOTS_EACH * (1 - 1e-6)


@given(replicas=figures, gone=st.sets(st.integers(0, 19)), turns=st.floats(0.5, 300))
def test_a_replica_that_leaves_or_is_gone_counts_for_nothing(
    replicas: list[tuple[float, float]], gone: set[int], turns: float
) -> None:
    seen = told(*replicas)
    seen.running_replicas = [number for number in seen.running_replicas if number not in gone]
    left = [one for number, one in enumerate(replicas) if number not in gone]
    expected = ByTurns(turns)(told(*left))[0] if left else seen.target_num_replicas
    assert ByTurns(turns)(seen)[0] == pytest.approx(expected)


@pytest.mark.parametrize("metrics", [None, {}, {TURNS: {}}, {"queue": {0: 5.0}}])
def test_while_nobody_has_told_anything_nothing_is_changed(metrics: dict[str, dict[object, float]] | None) -> None:
    assert ByTurns(8)(Told(metrics, [0, 1], 3)) == (3, {})


@pytest.mark.parametrize("turns", [0, -1, math.nan])
def test_a_policy_wants_a_number_of_turns(turns: float) -> None:
    with pytest.raises(ValueError, match="turns: expected more than 0"):
        ByTurns(turns)


def test_the_controller_needs_nothing_of_ours_to_decide() -> None:
    """Ray hands the module over by value: what it imports must be where the controller is."""
    imported = {
        node.module
        for node in ast.walk(ast.parse(Path(scaling.__file__).read_text("utf-8")))
        if isinstance(node, ast.ImportFrom)
    }
    assert imported == {"__future__", "collections.abc", "typing"}
