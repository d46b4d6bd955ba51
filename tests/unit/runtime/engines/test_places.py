"""What is lent beside turns: when it may be, and when it goes back."""

from __future__ import annotations

from functools import partial
from math import nan

from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.places import FULL, Load, Places

SMALL = st.integers(0, 12)


@given(st.none() | st.integers(1, 12), SMALL, SMALL, st.just(nan) | st.floats(0, 1), st.integers(0, 6))
def test_what_is_lent_goes_back_where_a_turn_waits_for_its_place_and_only_there(
    most: int | None, running: int, waiting: int, usage: float, wanted: int
) -> None:
    """A request that came in a moment ago waits too, beside free places: that is no reason."""
    places, ended = Places(most), []
    lent = [places.lend(partial(ended.append, number)) for number in range(wanted)]
    assert sum(lent) == (wanted if most is None else min(wanted, most))
    places.press(Load(running, waiting, usage))
    crowded = waiting > 0 and (most is None or running + waiting > most)
    pressed = crowded or usage >= FULL
    assert len(ended) == (sum(lent) if pressed else 0)
    assert places.lent == sum(lent) - len(ended)
    free = most is None or places.lent < most
    assert places.lend(lambda: None) == (free and not pressed)


def test_a_turn_takes_its_place_from_the_oldest_that_is_lent() -> None:
    places, ended = Places(2), []
    assert places.lend(lambda: ended.append("first"))
    assert places.lend(lambda: ended.append("second"))
    assert not places.lend(lambda: ended.append("third"))
    places.take()
    assert ended == ["first"]
    places.take()
    assert ended == ["first", "second"]
    places.take()  # turns themselves are never refused
    assert places.turns == 3
    assert places.lent == 0
