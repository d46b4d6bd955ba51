"""How a reply is drawn: what a message names is changed, and nothing else; nothing of a client's text is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runtime.engines import Sampling
from runtime.turns import sampling as room
from runtime.turns.sampling import changed
from runtime.wire.messages import SamplingChange

VALUES = st.dictionaries(
    st.sampled_from(["temperature", "top_p", "top_k", "min_p", "presence_penalty"]), st.sampled_from([0, 1, 0.5, 1.0])
)
CHANGES = st.builds(
    SamplingChange,
    VALUES,
    max_tokens=st.sampled_from([None, 1, 50]),
    stop=st.sampled_from([None, (), ("a",), ("a", "b")]),
    seed=st.sampled_from([None, 0, 7]),
)


@given(st.lists(CHANGES, max_size=4))
def test_changes_add_up_to_what_was_named_last(changes: list[SamplingChange]) -> None:
    found = Sampling()
    wanted: dict[str, Any] = {}
    for change in changes:
        found = changed(found, change)
        wanted |= {name: int(value) if name == "top_k" else value for name, value in change.values.items()}
        given_beside = {"max_tokens": change.max_tokens, "stop": change.stop, "seed": change.seed}
        wanted |= {name: value for name, value in given_beside.items() if value is not None}
    assert found == replace(Sampling(), **wanted)
    assert isinstance(found.top_k, int)


def test_what_names_nothing_changes_nothing() -> None:
    sampling = Sampling(stop=("a",), seed=1)
    assert changed(sampling, SamplingChange()) is sampling


def test_a_clients_texts_are_not_kept() -> None:
    room._with.cache_clear()
    told = changed(Sampling(), SamplingChange({"top_k": 5}, stop=("a client's own",), seed=5))
    kept = room._with.cache_info().currsize
    changed(told, SamplingChange({"top_k": 6}))
    assert room._with.cache_info().currsize == kept == 1
