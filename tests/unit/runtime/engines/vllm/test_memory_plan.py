"""What a model needs of a GPU beside its KV cache is measured once, and taken only where everything is as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.vllm import contract, memory_plan
from runtime.engines.vllm.memory_plan import SLACK, Facts, expected, keep, key_of

GIB = 2**30
KEY = key_of({"gpu": "one"})


@st.composite
def measured(draw: st.DrawFn) -> tuple[list[Facts], list[int]]:
    """Ranks, and what was left for the cache of each."""
    ranks, caches = [], []
    for _ in range(draw(st.integers(1, 4))):
        allowed = draw(st.integers(2 * GIB, 140 * GIB))
        ranks.append(Facts(KEY, draw(st.integers(1, 140 * GIB)), allowed))
        caches.append(draw(st.integers(1, allowed - 1)))
    return ranks, caches


@given(measured(), st.data())
def test_a_plan_gives_what_measuring_gave_and_less_by_what_may_be_used_less(
    tmp_path_factory: pytest.TempPathFactory, found: tuple[list[Facts], list[int]], data: st.DataObject
) -> None:
    here = tmp_path_factory.mktemp("plans")
    ranks, caches = found
    assert expected(here, ranks) is None
    keep(here, ranks, caches)
    assert expected(here, ranks) == caches
    lost = [data.draw(st.integers(-GIB, GIB)) for _ in ranks]
    others = [Facts(rank.key, rank.free, rank.allowed - less) for rank, less in zip(ranks, lost, strict=True)]
    smaller = [cache - less for cache, less in zip(caches, lost, strict=True)]
    assert expected(here, others) == (smaller if min(smaller) > 0 else None), "a classifier beside it takes its part"


@given(measured(), st.data())
def test_a_plan_is_left_where_less_is_free_or_anything_else_differs(
    tmp_path_factory: pytest.TempPathFactory, found: tuple[list[Facts], list[int]], data: st.DataObject
) -> None:
    here = tmp_path_factory.mktemp("plans")
    ranks, caches = found
    keep(here, ranks, caches)
    which = data.draw(st.integers(0, len(ranks) - 1))
    rank = ranks[which]

    def but(other: Facts) -> list[Facts]:
        return [*ranks[:which], other, *ranks[which + 1 :]]

    less = data.draw(st.integers(1, 10 * GIB))
    assert expected(here, but(Facts(rank.key, rank.free - SLACK - less, rank.allowed))) is None
    assert expected(here, but(Facts(rank.key, rank.free - SLACK, rank.allowed))) == caches
    assert expected(here, but(Facts(rank.key, rank.free + less, rank.allowed))) == caches
    assert expected(here, but(Facts(key_of({"gpu": "two"}), rank.free, rank.allowed))) is None
    assert expected(here, [*ranks, rank]) is None, "another number of GPUs"


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), min_size=1), st.data())
def test_a_key_changes_with_any_of_its_facts(facts: dict[str, object], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(facts)))
    assert key_of(facts) == key_of(dict(reversed(facts.items())))
    assert key_of(facts) != key_of(facts | {name: f"{facts[name]!r} and more"})


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "7", '{"needed": 1}', '{"needed": "1", "free": 2}', '{"needed": true, "free": 2}',
     '{"needed": -5, "free": 2}', '{"needed": 0, "free": 2}', '{"needed": 1.5, "free": 2}', "\\xff"],
)  # fmt: skip
def test_what_is_no_plan_is_passed_over(tmp_path: Path, content: str) -> None:
    ranks = [Facts(KEY, 10 * GIB, 9 * GIB)]
    keep(tmp_path, ranks, [GIB])
    [path] = tmp_path.iterdir()
    path.write_text(content)
    assert expected(tmp_path, ranks) is None
    keep(tmp_path, ranks, [2 * GIB])
    assert expected(tmp_path, ranks) == [2 * GIB]


def test_where_nothing_can_be_written_nothing_is_kept_and_nothing_is_left_behind(tmp_path: Path) -> None:
    here = tmp_path / "file"
    here.write_text("in its place")
    keep(here, [Facts(KEY, GIB, GIB)], [5])
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


class Executor:
    """vLLM's executor, as far as plans know it: ranks that count how often they were measured."""

    def __init__(self, ranks: list[Facts | None], sizes: list[int]) -> None:
        self.ranks, self.sizes = ranks, sizes
        self.given: list[int] | None = None
        self.estimated = 0

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        if method == "memory_facts":
            return list(self.ranks)
        assert method == "expect_cache"
        [self.given] = args
        return [None] * len(self.ranks)

    def measure(self) -> list[int]:
        self.estimated += self.given is None
        return self.given or self.sizes


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Executor], Any]:
    pytest.importorskip("vllm")
    core = pytest.importorskip("runtime.engines.vllm.core")
    monkeypatch.setattr(contract, "on_cpu", lambda: False)
    monkeypatch.setattr(contract.seams, "_wrong", dict.fromkeys(contract.seams._seams))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.delenv(memory_plan.OFF, raising=False)
    return lambda executor: core.planned(executor, executor.measure)


FACTS = [Facts(KEY, 60 * GIB, 70 * GIB), Facts(KEY, 61 * GIB, 70 * GIB)]


@pytest.mark.engine
def test_an_engine_measures_once_and_starts_by_the_plan_from_then_on(planned: Any, tmp_path: Path) -> None:
    first, second = Executor(list(FACTS), [40 * GIB, 41 * GIB]), Executor(list(FACTS), [1, 1])
    assert planned(first) == planned(second) == [40 * GIB, 41 * GIB]
    assert (first.estimated, second.estimated) == (1, 0)
    assert len(list((tmp_path / memory_plan.FOLDER).iterdir())) == 2
    for path in (tmp_path / memory_plan.FOLDER).iterdir():
        assert set(json.loads(path.read_text())) == {"needed", "free"}
    busy = Executor([Facts(KEY, 50 * GIB, 70 * GIB), FACTS[1]], [30 * GIB, 30 * GIB])
    assert planned(busy) == [30 * GIB, 30 * GIB], "somebody else is on the first GPU"
    assert busy.estimated == 1


@pytest.mark.engine
@pytest.mark.parametrize("value", ["0", "1"])
def test_vllm_s_own_variable_leaves_vllm_to_itself(planned: Any, monkeypatch: Any, tmp_path: Path, value: str) -> None:
    monkeypatch.setenv(memory_plan.OFF, value)
    executors = [Executor(list(FACTS), [40 * GIB, 41 * GIB]) for _ in range(2)]
    assert all(planned(executor) == [40 * GIB, 41 * GIB] for executor in executors)
    assert [executor.estimated for executor in executors] == [1, 1]
    assert not list(tmp_path.iterdir())


@pytest.mark.engine
def test_a_cache_whose_size_was_chosen_is_left_alone(planned: Any, tmp_path: Path) -> None:
    chosen = Executor([None, None], [5, 5])
    assert planned(chosen) == [5, 5]
    assert not list(tmp_path.iterdir())


@pytest.mark.engine
def test_a_failure_to_plan_is_no_failure_to_start(planned: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Deaf(Executor):
        def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
            raise AttributeError(f"no {method}")

    deaf = Deaf(list(FACTS), [7, 7])
    assert planned(deaf) == [7, 7]
    assert "memory plan" in caplog.text
    assert not contract.seams.holds("memory plan")
